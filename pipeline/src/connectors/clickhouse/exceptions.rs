//! Which of ClickHouse's errors pass by themselves, in one place.

use clickhouse::error::Error;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass: try again.
    Retry,
    /// The same request will fail again.
    Refused,
}

/// Exceptions of ClickHouse that pass by themselves: it is busy, starting, stopping, or its own peers are away.
const PASSING: &[(u32, &str)] = &[
    (159, "TIMEOUT_EXCEEDED"),
    (160, "TOO_SLOW"),
    (201, "QUOTA_EXCEEDED"),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES"),
    (203, "NO_FREE_CONNECTION"),
    (209, "SOCKET_TIMEOUT"),
    (210, "NETWORK_ERROR"),
    (225, "NO_ZOOKEEPER"),
    (236, "ABORTED"),
    (241, "MEMORY_LIMIT_EXCEEDED"),
    (242, "TABLE_IS_READ_ONLY"),
    (243, "NOT_ENOUGH_SPACE"),
    (244, "UNEXPECTED_ZOOKEEPER_ERROR"),
    (252, "TOO_MANY_PARTS"),
    (279, "ALL_CONNECTION_TRIES_FAILED"),
    (285, "TOO_FEW_LIVE_REPLICAS"),
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE"),
    (289, "REPLICA_IS_NOT_IN_QUORUM"),
    (319, "UNKNOWN_STATUS_OF_INSERT"),
    (394, "QUERY_WAS_CANCELLED"),
    (425, "SYSTEM_ERROR"),
    (439, "CANNOT_SCHEDULE_TASK"),
    (473, "DEADLOCK_AVOIDED"),
    (499, "S3_ERROR"),
    (574, "DISTRIBUTED_TOO_MANY_PENDING_BYTES"),
    (692, "TOO_MANY_MUTATIONS"),
    (745, "SERVER_OVERLOADED"),
    (999, "KEEPER_EXCEPTION"),
    (1000, "POCO_EXCEPTION"),
];

/// What ClickHouse says of one insert into too many partitions: the rows stay as many, however often they are sent.
const TOO_MANY_PARTITIONS: &str = "Too many partitions for single INSERT block";

/// Whether to try again after `error`.
pub(super) fn verdict(error: &Error) -> Verdict {
    let passes = match error {
        Error::Network(_) | Error::TimedOut => true,
        // Whatever stands in front of ClickHouse answers without its code, in its own words, when ClickHouse is away.
        Error::BadResponse(text) => match exception_code(text) {
            // Under the code of a table that has too many parts, which pass as they are merged.
            Some(252) if text.contains(TOO_MANY_PARTITIONS) => false,
            Some(code) => PASSING.iter().any(|(known, _)| *known == code),
            None => http_status(text).is_none_or(|status| status == 408 || status == 429 || status >= 500),
        },
        _ => false,
    };
    if passes { Verdict::Retry } else { Verdict::Refused }
}

/// What ClickHouse said, without the client's words around it and without its version.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::BadResponse(text) => text.split(" (version ").next().unwrap_or(text).trim().to_owned(),
        Error::Network(cause) => {
            // The innermost cause says it: "connection refused".
            let mut cause: &dyn std::error::Error = cause.as_ref();
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            cause.to_string()
        }
        other => other.to_string(),
    }
}

/// The number in `Code: 60. DB::Exception: ...`.
fn exception_code(text: &str) -> Option<u32> {
    let after = text.split_once("Code: ")?.1;
    let digits = after.find(|c: char| !c.is_ascii_digit()).map_or(after, |end| &after[..end]);
    digits.parse().ok()
}

/// The status of an answer without a body: `503 Service Unavailable`.
fn http_status(text: &str) -> Option<u16> {
    let (digits, _) = text.split_once(' ')?;
    if digits.len() == 3 { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Verdict {
        verdict(&Error::BadResponse(text.into()))
    }

    #[test]
    fn what_passes_is_tried_again() {
        assert_eq!(answer("Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS) (version 26.7)"), Verdict::Retry);
        assert_eq!(answer("503 Service Unavailable"), Verdict::Retry);
        assert_eq!(answer("<html>502 Bad Gateway</html>"), Verdict::Retry);
        assert_eq!(verdict(&Error::Network("connection refused".into())), Verdict::Retry);
        assert_eq!(verdict(&Error::TimedOut), Verdict::Retry);
    }

    #[test]
    fn what_fails_again_is_not() {
        assert_eq!(answer("Code: 349. DB::Exception: Cannot convert NULL value"), Verdict::Refused);
        assert_eq!(answer("Code: 516. DB::Exception: me: Authentication failed"), Verdict::Refused);
        assert_eq!(answer("404 Not Found"), Verdict::Refused);
        let partitions = "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100).";
        assert_eq!(answer(partitions), Verdict::Refused);
        assert_eq!(verdict(&Error::Unsupported("https".into())), Verdict::Refused);
    }

    #[test]
    fn the_table_is_sorted_and_names_each_code_once() {
        assert!(PASSING.is_sorted_by(|a, b| a.0 < b.0));
    }
}
