//! ClickHouse's exceptions as clients see them: code, text and HTTP status.

use std::fmt::{self, Display};

use hyper::StatusCode;

/// An exception with ClickHouse's code. Displayed as ClickHouse does: `Code: 60. DB::Exception: ... (UNKNOWN_TABLE)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception {
    code: u32,
    text: String,
}

macro_rules! raised_here {
    ($($(#[$doc:meta])* $function:ident = $code:literal $name:literal;)*) => {
        impl Exception {
            $($(#[$doc])* pub(crate) fn $function(message: impl Display) -> Self { Self::new($code, $name, message) })*
        }
    };
}

raised_here! {
    /// The request's body ended too early.
    unexpected_end = 3 "UNEXPECTED_END_OF_FILE";
    /// A wrong value in the request.
    bad_arguments = 36 "BAD_ARGUMENTS";
    /// A block's checksum does not fit its bytes.
    checksum_mismatch = 40 "CHECKSUM_DOESNT_MATCH";
    /// ClickHouse has it, the embedded engine has not.
    not_implemented = 48 "NOT_IMPLEMENTED";
    /// The text is not one statement.
    syntax = 62 "SYNTAX_ERROR";
    /// `FROM INFILE` makes sense in a client only.
    infile_not_allowed = 78 "UNKNOWN_TYPE_OF_QUERY";
    /// A compression that is not supported.
    unknown_compression = 89 "UNKNOWN_COMPRESSION_METHOD";
    /// A setting's name that cannot be one.
    unknown_setting = 115 "UNKNOWN_SETTING";
    /// A changing statement in a GET request.
    readonly = 164 "READONLY";
    /// More queries at once than allowed.
    too_many_queries = 202 "TOO_MANY_SIMULTANEOUS_QUERIES";
    /// The client stopped sending.
    network = 210 "NETWORK_ERROR";
    /// A query with this id runs.
    same_query_id = 216 "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING";
    /// The server is stopping.
    aborted = 236 "ABORTED";
    /// The body cannot be decompressed.
    cannot_decompress = 271 "CANNOT_DECOMPRESS";
    /// `INTO OUTFILE` makes sense in a client only.
    outfile_not_allowed = 358 "INTO_OUTFILE_NOT_ALLOWED";
    /// `session_check=1` for a session that is not there.
    session_not_found = 372 "SESSION_NOT_FOUND";
    /// The session runs another query.
    session_locked = 373 "SESSION_IS_LOCKED";
    /// `session_timeout` is no number, or too large.
    invalid_session_timeout = 374 "INVALID_SESSION_TIMEOUT";
    /// Roles are not served.
    unknown_role = 511 "UNKNOWN_ROLE";
    /// The wrong user or password.
    authentication_failed = 516 "AUTHENTICATION_FAILED";
    /// The system refused something.
    system = 1001 "STD_EXCEPTION";
}

const UNKNOWN: u32 = 1002;

impl Exception {
    fn new(code: u32, name: &str, message: impl Display) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {message} ({name})") }
    }

    /// The exception in an engine's message. A message without a code gets ClickHouse's code for that, 1002.
    pub(crate) fn from_engine(message: &str) -> Self {
        // The engine adds its version to some messages and not to others; `versioned` adds it to all.
        let message = message.trim_end();
        let bare = match message.rfind(" (version ") {
            Some(at) if message.ends_with(')') => message.get(..at).unwrap_or(message),
            _ => message,
        };
        match code_of(bare) {
            Some(code) => Self { code, text: bare.to_owned() },
            None => Self::new(UNKNOWN, "UNKNOWN_EXCEPTION", bare),
        }
    }

    /// Removes what the server put into the statement from the text, which may quote it.
    pub(crate) fn without(mut self, inserted: &str) -> Self {
        if !inserted.is_empty() && self.text.contains(inserted) {
            self.text = self.text.replace(inserted, "");
        }
        self
    }

    /// ClickHouse's number.
    pub(crate) fn code(&self) -> u32 {
        self.code
    }

    /// The text as ClickHouse's HTTP interface ends it: with the version, for clients that look for it.
    pub(crate) fn versioned(&self, version: &str) -> String {
        format!("{} (version {version} (official build))", self.text)
    }

    /// The status that ClickHouse answers with (`exceptionCodeToHTTPStatus`).
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | 497 | 512 | 516 => StatusCode::FORBIDDEN,
            6 | 8 | 15 | 25 | 26 | 27 | 36 | 37 | 38 | 41 | 44 | 53 | 62 | 72 | 117 | 123 | 167 | 168 | 223 | 321
            | 376 | 427 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 152 | 336 | 511 => StatusCode::NOT_FOUND,
            159 => StatusCode::REQUEST_TIMEOUT,
            381 => StatusCode::LENGTH_REQUIRED,
            229 => StatusCode::PAYLOAD_TOO_LARGE,
            779 => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            48 => StatusCode::NOT_IMPLEMENTED,
            76 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl std::error::Error for Exception {}

impl Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn code_of(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("Code: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_message_keeps_its_code_and_loses_its_version() {
        let raised = Exception::from_engine(
            "Code: 27. DB::Exception: Cannot parse input. (CANNOT_PARSE_INPUT_ASSERTION_FAILED) (version 26.7.2.1)",
        );
        assert_eq!(raised.code(), 27);
        assert_eq!(raised.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            raised.versioned("1.2"),
            "Code: 27. DB::Exception: Cannot parse input. (CANNOT_PARSE_INPUT_ASSERTION_FAILED) \
             (version 1.2 (official build))"
        );
    }

    #[test]
    fn a_message_without_a_code_is_an_unknown_exception() {
        let raised = Exception::from_engine("Query processing failed");
        assert_eq!(raised.to_string(), "Code: 1002. DB::Exception: Query processing failed (UNKNOWN_EXCEPTION)");
        assert_eq!(raised.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn what_the_server_put_into_a_statement_is_not_quoted_back() {
        let raised = Exception::from_engine("Code: 60. DB::Exception: no t in SELECT 1/*x*/ FROM t").without("/*x*/");
        assert_eq!(raised.to_string(), "Code: 60. DB::Exception: no t in SELECT 1 FROM t");
    }
}
