//! Who asks: ClickHouse's three ways to give a user and a password, and the check.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::exception::Exception;

/// The user and password of a request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    user: String,
    password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads them from `X-ClickHouse-User` and `X-ClickHouse-Key`, `Authorization`, or the URL; one way at a time.
    ///
    /// # Errors
    /// Code 516 for two ways at once, and for an `Authorization` that is not Basic.
    pub(crate) fn read(
        user: Option<&str>,
        key: Option<&str>,
        authorization: Option<&str>,
        url: (Option<String>, Option<String>),
    ) -> Result<Self, Exception> {
        let in_headers = user.is_some() || key.is_some();
        let in_url = url.0.is_some() || url.1.is_some();
        if [in_headers, authorization.is_some(), in_url].into_iter().filter(|given| *given).count() > 1 {
            return Err(Exception::authentication_failed(
                "Invalid authentication: it is not allowed to use X-ClickHouse HTTP headers, the Authorization \
                 HTTP header and authentication via parameters simultaneously",
            ));
        }
        let (user, password) = match authorization {
            Some(authorization) => basic(authorization)?,
            None if in_headers => (user.unwrap_or_default().to_owned(), key.unwrap_or_default().to_owned()),
            None => (url.0.unwrap_or_default(), url.1.unwrap_or_default()),
        };
        let user = if user.is_empty() { "default".to_owned() } else { user };
        Ok(Self { user, password })
    }
}

fn basic(authorization: &str) -> Result<(String, String), Exception> {
    let wrong = |reason| Exception::authentication_failed(format_args!("Invalid authentication: {reason}"));
    let (scheme, encoded) = authorization.split_once(' ').unwrap_or((authorization, ""));
    if !scheme.eq_ignore_ascii_case("Basic") {
        return Err(wrong(format!("'{scheme}' HTTP Authorization scheme is not supported")));
    }
    let decoded =
        STANDARD.decode(encoded.trim()).map_err(|_| wrong("the Authorization header is not base64".into()))?;
    let text = String::from_utf8(decoded).map_err(|_| wrong("the Authorization header is not UTF-8".into()))?;
    let (user, password) = text.split_once(':').unwrap_or((&text, ""));
    Ok((user.to_owned(), password.to_owned()))
}

/// The one user that the server knows.
pub(crate) struct Account {
    user: String,
    password: Option<String>,
}

impl Account {
    /// `user` is `default` if not set; without a password, any is right.
    pub(crate) fn new(user: Option<String>, password: Option<String>) -> Self {
        Self { user: user.unwrap_or_else(|| "default".to_owned()), password }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// Code 516, which does not say which of the two is wrong.
    pub(crate) fn check(&self, given: &Credentials) -> Result<(), Exception> {
        let user = same(self.user.as_bytes(), given.user.as_bytes());
        let password = self.password.as_ref().is_none_or(|right| same(right.as_bytes(), given.password.as_bytes()));
        if user && password {
            return Ok(());
        }
        Err(Exception::authentication_failed(format_args!(
            "{}: Authentication failed: password is incorrect, or there is no user with such name.",
            given.user
        )))
    }
}

/// Compares in a time that does not tell how much is the same.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(user: &str, password: &str) -> (Option<String>, Option<String>) {
        (Some(user.into()), Some(password.into()))
    }

    #[test]
    fn all_three_ways_are_read() {
        let expected = Credentials { user: "u".into(), password: "p:w".into() };
        assert_eq!(Credentials::read(Some("u"), Some("p:w"), None, (None, None)).unwrap(), expected);
        assert_eq!(Credentials::read(None, None, Some("Basic dTpwOnc="), (None, None)).unwrap(), expected);
        assert_eq!(Credentials::read(None, None, None, url("u", "p:w")).unwrap(), expected);
        let two = Credentials::read(Some("u"), None, None, url("u", "p"));
        assert_eq!(two.unwrap_err().code(), 516);
        assert_eq!(Credentials::read(None, None, Some("Bearer x"), (None, None)).unwrap_err().code(), 516);
    }

    #[test]
    fn only_the_right_user_with_the_right_password_is_let_in() {
        let account = Account::new(Some("u".into()), Some("p".into()));
        let given = |user: &str, password: &str| Credentials { user: user.into(), password: password.into() };
        assert!(account.check(&given("u", "p")).is_ok());
        for (user, password) in [("u", ""), ("u", "q"), ("default", "p"), ("", ""), ("u", "pp")] {
            assert_eq!(account.check(&given(user, password)).unwrap_err().code(), 516);
        }
        let open = Account::new(None, None);
        assert!(open.check(&given("default", "anything")).is_ok());
        assert!(open.check(&given("other", "")).is_err());
    }
}
