//! The URL of a store.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The store that a URL names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Sqlite(PathBuf),
    Redis(String),
    Postgres(String),
}

/// The error of a malformed URL. The message does not repeat the URL, because it may contain a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MalformedAddress {
    #[error(
        "the URL's scheme names no store of this program: write `sqlite://PATH`, `rediss://HOST:PORT`, `rediss+sentinel://HOST:PORT/SERVICE` or `postgres://USER@HOST/DATABASE`"
    )]
    Scheme,
    #[error(
        "this is no URL: write `sqlite://PATH`, `rediss://HOST:PORT`, `rediss+sentinel://HOST:PORT/SERVICE` or `postgres://USER@HOST/DATABASE`"
    )]
    NoScheme,
    #[error(
        "the URL names no file: write `sqlite://PATH`, such as `sqlite://idempotency.db` or `sqlite:///var/lib/app/idempotency.db`"
    )]
    NoFile,
    #[error("a SQLite URL has no parameters here: write `sqlite://PATH` without the `?` and what follows it")]
    Parameters,
}

impl FromStr for Address {
    type Err = MalformedAddress;

    fn from_str(text: &str) -> Result<Self, MalformedAddress> {
        let (scheme, rest) = text.split_once(':').ok_or(MalformedAddress::NoScheme)?;
        match (scheme, rest.strip_prefix("//")) {
            ("sqlite", path) => match path.unwrap_or(rest) {
                "" => Err(MalformedAddress::NoFile),
                path if path.contains('?') => Err(MalformedAddress::Parameters),
                path => Ok(Self::Sqlite(path.into())),
            },
            ("redis" | "rediss" | "redis+sentinel" | "rediss+sentinel", Some(_)) => Ok(Self::Redis(text.to_owned())),
            ("postgres" | "postgresql", Some(_)) => Ok(Self::Postgres(text.to_owned())),
            (_, Some(_)) => Err(MalformedAddress::Scheme),
            (_, None) => Err(MalformedAddress::NoScheme),
        }
    }
}

/// Omits every part that may be a password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Redis(url) | Self::Postgres(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
                write!(f, "{scheme}://{}", without_password(rest).unwrap_or("…"))
            }
        }
    }
}

/// Returns the host, port and path in the part after the scheme. Returns `None` if they may contain a part of a
/// password that is not percent-encoded.
fn without_password(rest: &str) -> Option<&str> {
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') {
        return None;
    }
    let host = authority.rsplit_once('@').map_or(0, |(user, _)| user.len() + 1);
    let end = path.find(['?', '#']).map_or(rest.len(), |end| authority.len() + end);
    Some(&rest[host..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_store_has_its_scheme() {
        for (text, address) in [
            ("sqlite://a/b.db", Address::Sqlite("a/b.db".into())),
            ("sqlite:///a/b.db", Address::Sqlite("/a/b.db".into())),
            ("sqlite:b.db", Address::Sqlite("b.db".into())),
            ("redis://h:1/", Address::Redis("redis://h:1/".to_owned())),
            ("rediss://h:1/", Address::Redis("rediss://h:1/".to_owned())),
            ("redis+sentinel://h,i/s", Address::Redis("redis+sentinel://h,i/s".to_owned())),
            ("postgresql:///d", Address::Postgres("postgresql:///d".to_owned())),
        ] {
            assert!(text.parse() == Ok(address), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        for (text, shown) in [
            ("postgres://app:s3cret@db:5432/shop?password=s3cret", "postgres://db:5432/shop"),
            ("redis://:s3@cret@h:1/0", "redis://h:1/0"),
            ("redis://h:1", "redis://h:1"),
            ("rediss+sentinel://:s3cret@h:1,i:2/shop/0?sentinel_password=s3cret", "rediss+sentinel://h:1,i:2/shop/0"),
            ("postgres://app:s3/cret@db/shop", "postgres://…"),
            ("postgres://app:s3?cret@db/shop", "postgres://…"),
            ("redis://app:s3#cret@db", "redis://…"),
            ("redis://h:1/0?password=s3@cret", "redis://…"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
    }
}
