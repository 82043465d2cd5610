//! The two calls of the upstream contract, with the faults that the settings ask for.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode};
use serde::Deserialize;

use crate::answer::{self, Answer};
use crate::counters::{Ending, Outcome, Ticket};
use crate::draws::Counts;
use crate::influencers::{Place, lock};
use crate::server::{App, Replied, Reply, ResetConnection};
use crate::settings::{Fate, Fault, Settings};

/// The path of an influencer, without its pk.
pub const INFLUENCERS: &str = "/api/v1/influencers/";

const LARGEST_BODY: usize = 64 * 1_024;
const SUSPICIOUS_RATIO: f64 = 5.64;

/// `GET /api/v1/influencers/{pk}`; `pk` is as it stands in the path.
pub fn influencer(app: &Arc<App>, pk: &str) -> Reply {
    let Some(place) = pk.parse().ok().and_then(|pk| app.influencers.find(pk)) else {
        app.influencers.count_unknown();
        return Reply::now(answer::error(StatusCode::INTERNAL_SERVER_ERROR, "InfluencerNotFoundError"));
    };
    let settings = app.settings();
    if settings.is_quiet() {
        let counts = app.influencers.serve(place);
        return Reply::now(answer::json_bytes(influencer_json(place.pk, counts)));
    }
    Reply::later(troubled_influencer(Arc::clone(app), place, settings))
}

/// The same with what the settings ask for. Whoever hangs up meanwhile has not been answered.
async fn troubled_influencer(app: Arc<App>, place: Place, settings: Settings) -> Replied {
    let influencers = &app.influencers;
    let ticket = influencers.arrive(place);
    let ending = Ending::new(|outcome| influencers.end(place, ticket, outcome));
    let fate = settings.fate(&mut influencers.draws().influencer_fate(place.pk, ticket.number));
    wait(fate.latency).await;
    let Some(fault) = fate.fault else {
        ending.disarm();
        return Ok(answer::json_bytes(influencer_json(place.pk, influencers.end_served(place, ticket))));
    };
    let whole = influencer_json(place.pk, influencers.next(place));
    fail(fault, fate, &settings, whole, ending).await
}

/// `POST /api/v1/influencers/is_suspicious`.
pub async fn is_suspicious(app: Arc<App>, request: Request<Incoming>) -> Replied {
    let ticket: Ticket = lock(&app.suspicious).arrive();
    let ending = Ending::new(|outcome| {
        lock(&app.suspicious).end(ticket, outcome);
    });
    let reading = match read(request).await {
        Ok(reading) => reading,
        Err(refusal) => {
            ending.settle(Outcome::BadRequest);
            return Ok(*refusal);
        }
    };
    let draws = app.influencers.draws();
    let settings = app.settings();
    let fate = settings.fate(&mut draws.suspicious_fate(ticket.number));
    wait(fate.latency).await;
    let whole = suspicious_json(&reading);
    if let Some(fault) = fate.fault {
        return fail(fault, fate, &settings, whole, ending).await;
    }
    wait(draws.suspicious_delay(ticket.number)).await;
    ending.settle(Outcome::Ok);
    Ok(answer::json_bytes(whole))
}

/// Lets a request fail, and counts it. `whole` is what a body that is cut off would have been.
async fn fail(
    fault: Fault,
    fate: Fate,
    settings: &Settings,
    mut whole: Vec<u8>,
    ending: Ending<impl FnMut(Outcome)>,
) -> Replied {
    match fault {
        Fault::Error => {
            ending.settle(Outcome::Error);
            Ok(answer::error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"))
        }
        Fault::Timeout => {
            ending.settle(Outcome::Timeout);
            pending().await
        }
        Fault::Reset => {
            ending.settle(Outcome::Reset);
            Err(ResetConnection)
        }
        Fault::Malformed => {
            ending.settle(Outcome::Malformed);
            // Shorter by at least the closing brace, so it never parses.
            whole.truncate((whole.len() as f64 * fate.cut) as usize);
            Ok(answer::json_bytes(whole))
        }
        Fault::Throttled => {
            ending.settle(Outcome::Throttled);
            let mut answer = answer::error(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsError");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(settings.retry_after_seconds));
            Ok(answer)
        }
    }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// What `is_suspicious` is asked about.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reading {
    pk: u64,
    #[serde(rename = "username")]
    _username: String,
    follower_count: u64,
    following_count: u64,
}

/// The body of a request, or the answer that refuses it.
async fn read(request: Request<Incoming>) -> Result<Reading, Box<Answer>> {
    let body = body(request).await?;
    serde_json::from_slice(&body).map_err(|error| Box::new(answer::bad_request(&format!("the body: {error}"))))
}

/// The bytes of a body, or the answer that refuses it.
pub async fn body(request: Request<Incoming>) -> Result<bytes::Bytes, Box<Answer>> {
    match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => {
            Err(Box::new(answer::bad_request(&format!("the body, of at most {LARGEST_BODY} bytes: {error}"))))
        }
    }
}

fn suspicious_json(reading: &Reading) -> Vec<u8> {
    // As upstream divides: 0 to 0 is no number, which is not suspicious, and anything else to 0 is infinite.
    let suspicious = reading.follower_count as f64 / reading.following_count as f64 <= SUSPICIOUS_RATIO;
    format!(r#"{{"pk":{},"suspicious":{suspicious}}}"#, reading.pk).into_bytes()
}

fn influencer_json(pk: u64, counts: Counts) -> Vec<u8> {
    let mut number = itoa::Buffer::new();
    let mut json = Vec::with_capacity(144);
    let digits = number.format(pk).as_bytes();
    json.extend_from_slice(br#"{"pk":"#);
    json.extend_from_slice(digits);
    json.extend_from_slice(br#","username":"influencer-"#);
    json.extend_from_slice(digits);
    json.extend_from_slice(br#"","followerCount":"#);
    json.extend_from_slice(number.format(counts.follower).as_bytes());
    json.extend_from_slice(br#","followingCount":"#);
    json.extend_from_slice(number.format(counts.following).as_bytes());
    json.push(b'}');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_influencer_is_written_as_the_contract_says() {
        let json = influencer_json(1_000_000, Counts { follower: 103_412, following: 978 });
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"pk":1000000,"username":"influencer-1000000","followerCount":103412,"followingCount":978}"#
        );
    }

    #[test]
    fn the_largest_influencer_fits_its_buffer() {
        let counts = Counts { follower: u32::MAX, following: u32::MAX };
        let json = influencer_json(u64::MAX, counts);
        assert!(json.len() <= 144, "{} bytes", json.len());
    }

    #[test]
    fn suspicious_is_a_ratio_of_at_most_5_64() {
        let suspicious = |follower_count, following_count| {
            let reading = Reading { pk: 1, _username: String::new(), follower_count, following_count };
            String::from_utf8(suspicious_json(&reading)).unwrap().contains("true")
        };
        assert!(suspicious(564, 100));
        assert!(!suspicious(565, 100));
        assert!(suspicious(0, 1));
        assert!(!suspicious(1, 0));
        assert!(!suspicious(0, 0));
    }
}
