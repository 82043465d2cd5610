//! What the stand-in adds to the upstream API: its settings, its counters, the sequences it serves.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::{Serialize, Serializer};

use crate::answer::{self, Answer};
use crate::api;
use crate::counters::Tally;
use crate::draws::Counts;
use crate::influencers::{Place, lock};
use crate::server::{App, Replied, Reply};

const LONGEST_SEQUENCE: u64 = 1_000_000;

/// Answers a request that is none of the upstream API's.
pub fn handle(app: &Arc<App>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path();
    let known: (&[Method], &'static str) = match path {
        "/admin/settings" => (&[Method::GET, Method::PUT], "GET, PUT"),
        "/admin/requests" | "/admin/requests/all" | "/admin/sequence" | "/health" => (&[Method::GET], "GET"),
        "/admin/reset" => (&[Method::POST], "POST"),
        _ => return Reply::now(no_such_path(path)),
    };
    if !known.0.contains(request.method()) {
        return Reply::now(answer::method_not_allowed(known.1));
    }
    if path == "/admin/settings" && request.method() == Method::PUT {
        return Reply::later(change_settings(Arc::clone(app), request));
    }
    Reply::now(match path {
        "/admin/settings" => answer::json(&app.settings()),
        "/admin/requests" => requests(app, request.uri().query()),
        "/admin/requests/all" => all_requests(app),
        "/admin/sequence" => sequence(app, request.uri().query()),
        "/admin/reset" => reset(app),
        _ => answer::json(&serde_json::json!({"status": "ok"})),
    })
}

fn no_such_path(path: &str) -> Answer {
    let message = format!(
        "there is no {path}; there are GET {influencers}PK, POST {influencers}is_suspicious, GET and PUT \
         /admin/settings, GET /admin/requests, GET /admin/requests/all, GET /admin/sequence, POST /admin/reset, GET \
         /health",
        influencers = api::INFLUENCERS
    );
    answer::failure(StatusCode::NOT_FOUND, "NotFoundError", &message)
}

async fn change_settings(app: Arc<App>, request: Request<Incoming>) -> Replied {
    let body = match api::body(request).await {
        Ok(body) => body,
        Err(refusal) => return Ok(*refusal),
    };
    Ok(match app.patch_settings(&body) {
        Ok(settings) => answer::json(&settings),
        Err(error) => answer::bad_request(&error.to_string()),
    })
}

#[derive(Serialize)]
struct AllRequests {
    #[serde(flatten)]
    influencers: Tally,
    is_suspicious: Tally,
}

#[derive(Serialize)]
struct RequestsOfOne {
    pk: u64,
    #[serde(flatten)]
    tally: Tally,
}

fn requests(app: &App, query: Option<&str>) -> Answer {
    let [pk] = match numbers(query, ["pk"]) {
        Ok(values) => values,
        Err(message) => return answer::bad_request(&message),
    };
    let Some(pk) = pk else {
        let is_suspicious = lock(&app.suspicious).clone();
        return answer::json(&AllRequests { influencers: app.influencers.totals(), is_suspicious });
    };
    match find(app, pk) {
        Ok(place) => answer::json(&RequestsOfOne { pk, tally: app.influencers.tally(place) }),
        Err(message) => answer::bad_request(&message),
    }
}

fn all_requests(app: &Arc<App>) -> Answer {
    let app = Arc::clone(app);
    answer::text((0..app.influencers.parts()).map(move |part| app.influencers.lines(part)))
}

#[derive(Serialize)]
struct Sequence {
    seed: u64,
    pk: u64,
    /// Pairs of follower and following count.
    #[serde(serialize_with = "pairs")]
    values: Vec<Counts>,
}

fn pairs<S: Serializer>(values: &[Counts], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|counts| [counts.follower, counts.following]))
}

fn sequence(app: &App, query: Option<&str>) -> Answer {
    let (pk, n) = match numbers(query, ["pk", "n"]) {
        Ok([Some(pk), Some(n @ 0..=LONGEST_SEQUENCE)]) => (pk, n),
        Ok([_, Some(n)]) if n > LONGEST_SEQUENCE => {
            return answer::bad_request(&format!("parameter n is {n}; it is at most {LONGEST_SEQUENCE}"));
        }
        Ok(_) => {
            return answer::bad_request("both pk and n are needed, as in /admin/sequence?pk=1000000&n=10");
        }
        Err(message) => return answer::bad_request(&message),
    };
    let place = match find(app, pk) {
        Ok(place) => place,
        Err(message) => return answer::bad_request(&message),
    };
    let draws = app.influencers.draws();
    let values = draws.sequence(place.pk).take(n as usize).collect();
    answer::json(&Sequence { seed: draws.seed(), pk, values })
}

fn reset(app: &App) -> Answer {
    app.influencers.reset();
    lock(&app.suspicious).reset();
    answer::json(&serde_json::json!({"reset": true}))
}

fn find(app: &App, pk: u64) -> Result<Place, String> {
    app.influencers.find(pk).ok_or_else(|| format!("there is no pk {pk}; there are {}", app.influencers.range()))
}

/// The values of the parameters called `names`, all of them numbers. Others are refused.
fn numbers<const N: usize>(query: Option<&str>, names: [&str; N]) -> Result<[Option<u64>; N], String> {
    let mut values = [None; N];
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = names.iter().position(|known| *known == name).and_then(|index| values.get_mut(index));
        let slot = slot.ok_or_else(|| format!("unknown parameter \"{name}\"; there are {}", names.join(", ")))?;
        let number = value.parse().map_err(|_| format!("parameter {name} is \"{value}\", which is not a number"))?;
        *slot = Some(number);
    }
    Ok(values)
}
