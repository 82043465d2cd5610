//! What a request asks for: ClickHouse's URL parameters and headers, read once.

use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use crate::auth::Credentials;
use crate::body::Encoding;
use crate::exception::Exception;
use crate::ffi::Param;
use crate::form;
use crate::session::{self, SessionRequest};

/// A request to run a query.
#[derive(Debug)]
pub(crate) struct QueryRequest {
    /// The part of the query that stands in the URL.
    pub(crate) query: String,
    pub(crate) query_id: String,
    /// `param_x=...`, for `{x:Type}` in the query.
    pub(crate) params: Vec<Param>,
    /// Every other parameter is a setting, for this query only.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) database: Option<String>,
    pub(crate) default_format: Option<String>,
    pub(crate) session: Option<SessionRequest>,
    /// GET and HEAD may not change anything.
    pub(crate) readonly: bool,
    /// The body is compressed so, and within that, if `decompress`, in ClickHouse's blocks.
    pub(crate) body_encoding: Encoding,
    pub(crate) decompress: bool,
    /// The body is a form with this boundary, and these parameters describe the external tables in it.
    pub(crate) form: Option<String>,
    pub(crate) tables: Vec<(String, String)>,
    pub(crate) output: OutputRequest,
}

/// How the result is to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputRequest {
    pub(crate) encoding: Encoding,
    /// ClickHouse's own blocks.
    pub(crate) compress: bool,
    /// The whole result is made before anything is sent.
    pub(crate) wait_end_of_query: bool,
    /// How much is held back so that an early failure still gets its own status, in bytes.
    pub(crate) buffer_size: usize,
    /// For which revision of the protocol a result in Native format is written.
    pub(crate) client_protocol_version: u64,
}

/// As ClickHouse, at least this much is held back.
const SMALLEST_BUFFER: usize = 1 << 20;

impl QueryRequest {
    /// Reads a request's URL and headers, and its credentials.
    ///
    /// # Errors
    /// An exception for values that make no sense, and for what is not supported.
    pub(crate) fn read(head: &Parts) -> Result<(Self, Credentials), Exception> {
        let headers = &head.headers;
        let mut url = UrlParameters::read(&head.uri)?;
        let accepted = header(headers, ACCEPT_ENCODING.as_str()).unwrap_or_default();
        let form = form::boundary(header(headers, CONTENT_TYPE.as_str()).unwrap_or_default())?;
        // The header comes before the URL, as in ClickHouse.
        let or_header = |name: &str, value: Option<String>| header(headers, name).map(str::to_owned).or(value);
        let credentials = Credentials::read(
            header(headers, "X-ClickHouse-User"),
            header(headers, "X-ClickHouse-Key"),
            header(headers, AUTHORIZATION.as_str()),
            (url.take("user"), url.take("password")),
        )?;
        let output = OutputRequest {
            encoding: if url.flag("enable_http_compression", true)? {
                Encoding::of_response(accepted)
            } else {
                Encoding::Identity
            },
            compress: url.take_flag("compress")?,
            wait_end_of_query: url.take_flag("wait_end_of_query")? | url.flag("http_wait_end_of_query", false)?,
            buffer_size: url.take_number("buffer_size")?.unwrap_or(0).max(SMALLEST_BUFFER),
            client_protocol_version: url.take_number("client_protocol_version")?.unwrap_or(0),
        };
        let request = Self {
            query: url.take("query").unwrap_or_default(),
            query_id: or_header("X-ClickHouse-Query-Id", url.take("query_id"))
                .filter(|id| !id.is_empty())
                .unwrap_or_else(random_id),
            database: or_header("X-ClickHouse-Database", url.take("database")).filter(|name| !name.is_empty()),
            default_format: or_header("X-ClickHouse-Format", url.take("default_format"))
                .filter(|format| !format.is_empty()),
            session: url.take_session()?,
            readonly: head.method == Method::GET || head.method == Method::HEAD,
            body_encoding: Encoding::of_request(header(headers, CONTENT_ENCODING.as_str()).unwrap_or_default())?,
            decompress: url.take_flag("decompress")?,
            output,
            params: url.take_params(),
            tables: if form.is_some() { url.take_tables() } else { Vec::new() },
            form,
            settings: url.into_settings()?,
        };
        Ok((request, credentials))
    }
}

/// The parameters of a URL; what is taken is no setting.
struct UrlParameters {
    pairs: Vec<(String, String)>,
}

impl UrlParameters {
    fn read(uri: &Uri) -> Result<Self, Exception> {
        let text = uri.query().unwrap_or_default();
        let mut pairs = Vec::new();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            // The decoder puts this in for bytes that are not UTF-8; a query must not change silently.
            if value.contains('\u{fffd}') && !text.contains("%EF%BF%BD") && !text.contains("%ef%bf%bd") {
                return Err(Exception::bad_arguments(format_args!(
                    "the URL parameter {name} is not UTF-8; send such text in the request's body"
                )));
            }
            if !name.is_empty() {
                pairs.push((name.into_owned(), value.into_owned()));
            }
        }
        Ok(Self { pairs })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let value = self.get(name).map(str::to_owned);
        self.pairs.retain(|(known, _)| known != name);
        value
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, Exception> {
        match self.get(name) {
            None | Some("") => Ok(default),
            Some("1" | "true") => Ok(true),
            Some("0" | "false") => Ok(false),
            Some(other) => Err(Exception::bad_arguments(format_args!("{name} is 0 or 1, not '{other}'"))),
        }
    }

    fn take_flag(&mut self, name: &str) -> Result<bool, Exception> {
        let flag = self.flag(name, false);
        self.take(name);
        flag
    }

    fn take_number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, Exception> {
        self.take(name)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse().map_err(|_| Exception::bad_arguments(format_args!("{name} is a number, not '{text}'")))
            })
            .transpose()
    }

    fn take_session(&mut self) -> Result<Option<SessionRequest>, Exception> {
        let timeout = session::timeout(self.take("session_timeout").as_deref())?;
        let check = self.take_flag("session_check")?;
        let close = self.take_flag("close_session")?;
        let id = self.take("session_id").filter(|id| !id.is_empty());
        Ok(id.map(|id| SessionRequest { id, timeout, check, close }))
    }

    fn take_params(&mut self) -> Vec<Param> {
        let is_param = |(name, _): &mut (String, String)| name.starts_with("param_");
        self.pairs
            .extract_if(.., is_param)
            .map(|(name, value)| (name.trim_start_matches("param_").to_owned(), value))
            .collect()
    }

    fn take_tables(&mut self) -> Vec<(String, String)> {
        self.pairs.extract_if(.., |(name, _)| form::describes_table(name)).collect()
    }

    fn into_settings(mut self) -> Result<Vec<(String, String)>, Exception> {
        if let Some(role) = self.take("role").filter(|role| !role.is_empty()) {
            return Err(Exception::unknown_role(format_args!(
                "There is no role `{role}`: the embedded engine has one user and no roles"
            )));
        }
        // Accepted for clients that send them, and without a meaning here.
        self.pairs.retain(|(name, _)| !["quota_key", "stacktrace"].contains(&name.as_str()));
        self.pairs.iter().try_for_each(|(name, _)| check_setting(name))?;
        Ok(self.pairs)
    }
}

/// Lets a name stand in a SET statement.
///
/// # Errors
/// Code 115 for what cannot be a setting's name.
pub(crate) fn check_setting(name: &str) -> Result<(), Exception> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) {
        return Ok(());
    }
    Err(Exception::unknown_setting(format_args!("Unknown setting '{name}'.")))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A random id in the form of a UUID, version 4.
fn random_id() -> String {
    let bits = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default().to_owned();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn read(uri: &str, headers: &[(&str, &str)]) -> Result<QueryRequest, Exception> {
        let mut request = Request::builder().method("POST").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        QueryRequest::read(&head).map(|(request, _)| request)
    }

    #[test]
    fn what_is_not_reserved_is_a_setting_or_a_parameter() {
        let request = read(
            "/?query=SELECT+1%2B%7Bx:UInt8%7D&param_x=5&max_threads=2&database=d&default_format=JSON&compress=1\
             &query_id=q&user=u&password=p&quota_key=k&client_protocol_version=54483&wait_end_of_query=1&x.y=1",
            &[],
        )
        .unwrap();
        assert_eq!(request.query, "SELECT 1+{x:UInt8}");
        assert_eq!(request.params, [("x".to_owned(), "5".to_owned())]);
        assert_eq!(request.settings, [("max_threads".to_owned(), "2".to_owned()), ("x.y".to_owned(), "1".to_owned())]);
        assert_eq!(request.database.as_deref(), Some("d"));
        assert_eq!(request.default_format.as_deref(), Some("JSON"));
        assert_eq!(request.query_id, "q");
        assert!(request.output.compress && request.output.wait_end_of_query && !request.readonly);
        assert_eq!(request.output.client_protocol_version, 54483);
    }

    #[test]
    fn headers_come_before_the_url() {
        let request =
            read("/?database=a&default_format=CSV", &[("X-ClickHouse-Database", "b"), ("X-ClickHouse-Format", "TSV")]);
        let request = request.unwrap();
        assert_eq!((request.database.as_deref(), request.default_format.as_deref()), (Some("b"), Some("TSV")));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let code = |uri| read(uri, &[]).unwrap_err().code();
        assert_eq!(code("/?compress=maybe"), 36);
        assert_eq!(code("/?a%27b=1"), 115);
        assert_eq!(code("/?session_id=s&session_timeout=x"), 374);
        assert_eq!(code("/?role=admin"), 511);
        assert_eq!(code("/?query=%ff"), 36);
        assert_eq!(read("/", &[("Content-Encoding", "br")]).unwrap_err().code(), 89);
    }

    #[test]
    fn a_random_id_is_a_uuid() {
        let id = random_id();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&id.as_bytes()[19]));
    }
}
