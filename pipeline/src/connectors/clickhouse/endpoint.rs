//! Where a ClickHouse is and who asks: parsed once from a URL, shared by the sink and the migrator.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

/// The database when the URL names none.
pub const DEFAULT_DATABASE: &str = "tickhouse";

/// A ClickHouse HTTP address with user, password and database.
///
/// Neither `Display` nor `Debug` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host, port and path only.
    base: Url,
    user: Option<String>,
    password: Option<String>,
    database: String,
}

/// A URL that names no ClickHouse. The message never repeats the whole URL, which may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Not a URL at all.
    #[error(
        "the ClickHouse URL cannot be read: {reason}. Write it as http://user:password@host:8123/?database=tickhouse"
    )]
    NotAUrl {
        /// What the URL parser says.
        reason: String,
    },
    /// A scheme other than `http`.
    #[error(
        "the ClickHouse URL starts with `{scheme}://`, and only `http://` is spoken: give the address of ClickHouse's HTTP interface \
         (port 8123 by default); where TLS is needed, put a proxy that ends it in between"
    )]
    Scheme {
        /// The scheme as written.
        scheme: String,
    },
    /// A parameter that means nothing here.
    #[error(
        "the ClickHouse URL has the parameter `{name}`, which is not known: there are `user`, `password` and `database`"
    )]
    Parameter {
        /// The parameter's name.
        name: String,
    },
    /// The same thing said twice, in the user part and in a parameter, or by two parameters.
    #[error("the ClickHouse URL gives the {what} twice")]
    Twice {
        /// `user`, `password` or `database`.
        what: &'static str,
    },
    /// A percent escape that is not UTF-8, or an empty database.
    #[error("the ClickHouse URL's {what} {problem}")]
    Value {
        /// `user`, `password` or `database`.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Endpoint {
    /// Reads `http://[user[:password]@]host[:port][/path][?database=..&user=..&password=..]`.
    ///
    /// User and password may be percent-encoded. Without a database it is [`DEFAULT_DATABASE`]. Nothing is contacted.
    ///
    /// # Errors
    /// [`EndpointError`], without the password in it.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let url = Url::parse(url.trim()).map_err(|error| EndpointError::NotAUrl { reason: error.to_string() })?;
        if url.scheme() != "http" {
            return Err(EndpointError::Scheme { scheme: url.scheme().to_owned() });
        }

        let mut user = OnceValue::new("user");
        let mut password = OnceValue::new("password");
        let mut database = OnceValue::new("database");
        if !url.username().is_empty() {
            user.set(decoded("user", url.username())?)?;
        }
        if let Some(text) = url.password() {
            password.set(decoded("password", text)?)?;
        }
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "user" => user.set(value.into_owned())?,
                "password" => password.set(value.into_owned())?,
                "database" if value.is_empty() => {
                    return Err(EndpointError::Value { what: "database", problem: "is empty" });
                }
                "database" => database.set(value.into_owned())?,
                other => return Err(EndpointError::Parameter { name: other.to_owned() }),
            }
        }

        Ok(Self {
            base: without_credentials(url),
            user: user.value,
            password: password.value,
            database: database.value.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
        })
    }

    /// The same ClickHouse and user, another database.
    #[must_use]
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// The database that unqualified table names mean.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The user, when the URL names one.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Scheme, host, port and path: what requests are sent to.
    pub fn base(&self) -> &str {
        self.base.as_str()
    }

    /// A client whose queries run in [`database`](Self::database). Nothing is contacted yet. Clones share its connections.
    pub fn client(&self) -> clickhouse::Client {
        self.server_client().with_database(self.database.clone())
    }

    /// A client that names no database: for creating it.
    pub fn server_client(&self) -> clickhouse::Client {
        let mut client = clickhouse::Client::default()
            .with_url(self.base.as_str())
            .with_product_info("tickhouse", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.user {
            client = client.with_user(user.clone());
        }
        if let Some(password) = &self.password {
            client = client.with_password(password.clone());
        }
        client
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.base.clone();
        url.query_pairs_mut().append_pair("database", &self.database);
        if let Some(user) = &self.user {
            url.query_pairs_mut().append_pair("user", user);
        }
        f.write_str(url.as_str())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// A part of the URL that may be given in one place only.
struct OnceValue {
    what: &'static str,
    value: Option<String>,
}

impl OnceValue {
    fn new(what: &'static str) -> Self {
        Self { what, value: None }
    }

    fn set(&mut self, value: String) -> Result<(), EndpointError> {
        match self.value.replace(value) {
            None => Ok(()),
            Some(_) => Err(EndpointError::Twice { what: self.what }),
        }
    }
}

fn decoded(what: &'static str, text: &str) -> Result<String, EndpointError> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(EndpointError::Value { what, problem: "is not UTF-8 once its percent escapes are decoded" }),
    }
}

/// The address alone. An `http` URL always has a host, so that taking the user away cannot fail.
fn without_credentials(mut url: Url) -> Url {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_address_means_the_default_database_and_no_user() {
        let endpoint = Endpoint::parse("http://localhost:8123").unwrap();
        assert_eq!(endpoint.base(), "http://localhost:8123/");
        assert_eq!((endpoint.user(), endpoint.database()), (None, "tickhouse"));
        assert_eq!(endpoint.client().database(), Some("tickhouse"));
        assert_eq!(endpoint.server_client().database(), None);
    }

    #[test]
    fn user_password_and_database_come_from_either_place() {
        let a = Endpoint::parse("http://me:p%40ss%2Bw@db:8123/?database=d").unwrap();
        let b = Endpoint::parse("http://db:8123/?user=me&password=p%40ss%2Bw&database=d").unwrap();
        assert_eq!(a, b);
        assert_eq!(a.password.as_deref(), Some("p@ss+w"));
    }

    #[test]
    fn the_password_is_never_shown() {
        let endpoint = Endpoint::parse("http://me:secret@db:8123/sub/path?database=d").unwrap();
        assert_eq!(endpoint.to_string(), "http://db:8123/sub/path?database=d&user=me");
        assert!(!format!("{endpoint:?}").contains("secret"));
        for bad in [
            "http://me:secret@db:8123/?databse=d",
            "http://me:secret@db:99999/",
            "http://me:secret@db/?password=secret",
        ] {
            let error = Endpoint::parse(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let error = |url: &str| Endpoint::parse(url).unwrap_err();
        assert!(matches!(error("localhost:8123"), EndpointError::Scheme { scheme } if scheme == "localhost"));
        assert!(matches!(error("https://h"), EndpointError::Scheme { scheme } if scheme == "https"));
        assert!(matches!(error("not a url"), EndpointError::NotAUrl { .. }));
        assert!(matches!(error("http://"), EndpointError::NotAUrl { .. }));
        assert_eq!(error("http://h/?databse=x"), EndpointError::Parameter { name: "databse".into() });
        assert_eq!(error("http://h/?database=x&database=y"), EndpointError::Twice { what: "database" });
        assert_eq!(error("http://a@h/?user=b"), EndpointError::Twice { what: "user" });
        assert!(matches!(error("http://h/?database="), EndpointError::Value { what: "database", .. }));
        assert!(matches!(error("http://%ff@h/"), EndpointError::Value { what: "user", .. }));
    }
}
