//! Answers: the body type, and the few shapes that both APIs use.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// A response as the server sends it.
pub type Answer = Response<Body>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The body of an answer.
pub enum Body {
    /// Known as a whole, so that it goes out with a length.
    Whole(Bytes),
    /// Made piece by piece while it is sent.
    Pieces(Box<dyn Iterator<Item = Vec<u8>> + Send>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Self::Pieces(pieces) => pieces.find(|piece| !piece.is_empty()).map(Bytes::from),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Status 200 with JSON that was written already.
pub fn json_bytes(body: Vec<u8>) -> Answer {
    with_type(JSON, Body::Whole(body.into()))
}

/// Status 200 with `value` as JSON.
pub fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => json_bytes(body),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", &error.to_string()),
    }
}

/// Status 200 with text, made piece by piece.
pub fn text(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Answer {
    with_type(TEXT, Body::Pieces(Box::new(pieces)))
}

/// An error in the shape of the upstream API: a name and nothing else.
pub fn error(status: StatusCode, name: &'static str) -> Answer {
    let mut answer = json_bytes(format!(r#"{{"error":{{"name":"{name}"}}}}"#).into_bytes());
    *answer.status_mut() = status;
    answer
}

/// An error that says more: for mistakes in calls that the upstream API does not have, or has no answer for.
pub fn failure(status: StatusCode, name: &'static str, message: &str) -> Answer {
    let mut answer = json(&serde_json::json!({"error": {"name": name, "message": message}}));
    *answer.status_mut() = status;
    answer
}

/// Status 400 with what is wrong.
pub fn bad_request(message: &str) -> Answer {
    failure(StatusCode::BAD_REQUEST, "BadRequestError", message)
}

/// Status 405; `allowed` are the methods there are.
pub fn method_not_allowed(allowed: &'static str) -> Answer {
    let message = format!("this path takes {allowed}");
    let mut answer = failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowedError", &message);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn with_type(content_type: HeaderValue, body: Body) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}
