//! Passwords and records are sent without encryption to this machine only, unless the application writes `sslmode=disable`.
//!
//! sqlx's default is `prefer`: without a TLS feature, or with a server that has no TLS, sqlx continues without encryption and without
//! a warning. So `prefer` means `require` here if the server is on another machine.

use std::io;
use std::path::Path;

use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode};
use sqlx_core::Url;
use sqlx_core::net::tls;

use crate::store::in_clear::is_local;

/// The parameters of a URL that sqlx reads. It ignores all others.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Connects a pool to the server of this URL.
pub(super) async fn pool(url: &str, pool: PgPoolOptions) -> Result<PgPool, sqlx::Error> {
    let written = options_of(url)?;
    pool.connect_with(encrypted(&written)?).await.map_err(|error| explained(error, &written))
}

fn options_of(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let parsed = Url::parse(url).map_err(|error| sqlx::Error::Configuration(error.into()))?;
    let mut has_root = false;
    for (name, _) in parsed.query_pairs() {
        let is_option = name.starts_with("options[") && name.ends_with(']');
        if !is_option && !PARAMETERS.contains(&&*name) {
            return Err(sqlx::Error::Configuration(Box::new(UnknownParameter)));
        }
        has_root |= matches!(&*name, "sslrootcert" | "ssl-root-cert" | "ssl-ca");
    }
    let options: PgConnectOptions = url.parse()?;
    // libpq does the same. sqlx would ignore the certificate.
    let is_verified = has_root && matches!(options.get_ssl_mode(), PgSslMode::Require);
    Ok(if is_verified { options.ssl_mode(PgSslMode::VerifyCa) } else { options })
}

/// Returns options with which nothing is sent to another machine without encryption, unless they say `disable`.
pub(super) fn encrypted(options: &PgConnectOptions) -> Result<PgConnectOptions, sqlx::Error> {
    let host = options.get_host();
    match options.get_ssl_mode() {
        // sqlx treats `allow` like `disable`.
        PgSslMode::Prefer | PgSslMode::Allow if is_on_this_machine(options) => Ok(options.clone()),
        PgSslMode::Prefer if tls::available() => Ok(options.clone().ssl_mode(PgSslMode::Require)),
        PgSslMode::Prefer if !tls::available() => Err(InClear::NoFeature { host: host.to_owned() }.into()),
        PgSslMode::Allow => Err(InClear::Allowed { host: host.to_owned() }.into()),
        _ => Ok(options.clone()),
    }
}

/// Returns whether these options only prefer the encryption that [`encrypted`] requires.
pub(super) fn is_only_preferred(options: &PgConnectOptions) -> bool {
    matches!(options.get_ssl_mode(), PgSslMode::Prefer) && !is_on_this_machine(options)
}

/// Fails if this connection is not encrypted although [`encrypted`] requires encryption. Each connection of a pool needs this check.
pub(super) async fn prove(connection: &mut PgConnection, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let own = sqlx::raw_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetch_one(connection).await?;
    if own.try_get(0)? { Ok(()) } else { Err(InClear::NoTls { host: options.get_host().to_owned() }.into()) }
}

/// Returns the error of a connection, with a remedy if these options do not require TLS, or if the certificate is not accepted.
pub(super) fn explained(error: sqlx::Error, options: &PgConnectOptions) -> sqlx::Error {
    match error {
        sqlx::Error::Tls(reason)
            if is_only_preferred(options) && reason.to_string().contains("does not support TLS") =>
        {
            InClear::NoTls { host: options.get_host().to_owned() }.into()
        }
        sqlx::Error::Io(error) if error.to_string().starts_with("invalid peer certificate") => {
            let kind = error.kind();
            sqlx::Error::Io(io::Error::new(kind, NotAccepted { host: options.get_host().to_owned(), source: error }))
        }
        error => error,
    }
}

fn is_on_this_machine(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some() || Path::new(host).has_root() || is_local(host)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum InClear {
    #[error(
        "the password and every record would be sent in clear to PostgreSQL at {host}: enable feature `tls`, or write \
         `sslmode=disable` if you trust the network"
    )]
    NoFeature { host: String },
    #[error(
        "PostgreSQL at {host} has no TLS, and the password and every record would be sent in clear: set `ssl = on` there, or \
         write `sslmode=disable` if you trust the network"
    )]
    NoTls { host: String },
    #[error(
        "with `sslmode=allow` the password and every record would be sent in clear to PostgreSQL at {host}: write \
         `sslmode=verify-full`, or `sslmode=disable` if you trust the network"
    )]
    Allowed { host: String },
}

/// rustls says what is wrong with a certificate, but not which parameter of the URL concerns it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the certificate of PostgreSQL at {host} is not accepted: name the authority that signed it with `sslrootcert=PATH`, and write \
     the host that it is valid for"
)]
struct NotAccepted {
    host: String,
    source: io::Error,
}

impl From<InClear> for sqlx::Error {
    fn from(error: InClear) -> Self {
        Self::Configuration(Box::new(error))
    }
}

/// The message does not contain the parameter's name, which may be a part of a password that is not percent-encoded.
#[derive(Debug, thiserror::Error)]
#[error("the URL has an unknown parameter; these are known: {}", PARAMETERS.join(", "))]
struct UnknownParameter;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> Result<PgSslMode, String> {
        let options = options_of(url).and_then(|options| encrypted(&options));
        options.map(|options| options.get_ssl_mode()).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_in_clear_to_another_machine_unless_written() {
        for url in ["postgres://localhost/d", "postgres://[::1]/d", "postgres://h/d?host=/run", "postgres://%2Frun/d"] {
            assert!(matches!(mode(url), Ok(PgSslMode::Prefer)), "{url}");
        }
        assert!(matches!(mode("postgres://db/d?sslmode=disable"), Ok(PgSslMode::Disable)));
        assert!(matches!(mode("postgres://db/d?sslmode=verify-full"), Ok(PgSslMode::VerifyFull)));
        let preferred = mode("postgres://app:secret@db/d");
        if tls::available() {
            assert!(matches!(preferred, Ok(PgSslMode::Require)), "{preferred:?}");
        } else {
            let told = preferred.expect_err("it would be in clear");
            assert!(told.contains("feature `tls`") && told.contains("`sslmode=disable`"), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
        let told = mode("postgres://db/d?sslmode=allow").expect_err("it would be in clear");
        assert!(told.contains("`sslmode=verify-full`"), "{told}");
    }

    #[test]
    fn require_with_a_root_certificate_verifies_it() {
        assert!(matches!(mode("postgres://db/d?sslmode=require&sslrootcert=ca.pem"), Ok(PgSslMode::VerifyCa)));
        assert!(matches!(mode("postgres://db/d?sslmode=require"), Ok(PgSslMode::Require)));
    }

    #[test]
    fn an_unknown_parameter_is_an_error() {
        let told = mode("postgres://localhost/d?sslmod=verify-full").expect_err("a mistake");
        assert!(told.contains("unknown parameter") && told.contains("sslmode"), "{told}");
    }
}
