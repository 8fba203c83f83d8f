//! The content of a store's URL.
//!
//! `redis` reads the URL of one server. This module reads the parts that `redis` would ignore: certificates, Sentinels,
//! and whether anything may be sent in clear to another machine.

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::store::in_clear::is_local;
use crate::store::redis::certificates::Certificates;
use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::tcp::tcp_settings;

#[derive(Clone)]
pub(super) struct Address {
    /// The address of the server. If Sentinels name the server, everything but host and port.
    pub(super) server: ConnectionInfo,
    #[cfg(any(feature = "redis-cluster", all(feature = "redis-sentinel", feature = "tls")))]
    pub(super) certificates: Certificates,
    /// Whether the URL allows an unencrypted connection to another machine.
    pub(super) may_be_in_clear: bool,
    #[cfg(feature = "redis-sentinel")]
    pub(super) sentinels: Option<Sentinels>,
}

#[cfg(feature = "redis-sentinel")]
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) addresses: Vec<ConnectionInfo>,
    pub(super) service: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

impl Address {
    pub(super) fn of(url: &str) -> Result<Self, RedisOpenError> {
        let (url, fragment) = url.split_once('#').map_or((url, None), |(url, fragment)| (url, Some(fragment)));
        let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
        let parameters = Parameters::of(parameters)?;
        match base.split_once("+sentinel://") {
            _ if fragment.is_some() => Err(malformed(
                "it ends with a `#`, which belongs percent-encoded (`%23`) into a password; `#insecure` would accept every \
                 certificate: name the authority with `?cacert=PATH`",
            )),
            #[cfg(feature = "redis-sentinel")]
            Some((scheme, rest)) => Self::of_sentinels(scheme, rest, &parameters),
            #[cfg(not(feature = "redis-sentinel"))]
            Some(_) => Err(RedisOpenError::NoSentinels),
            None => Self::of_server(base, &parameters),
        }
    }

    fn of_server(base: &str, parameters: &Parameters<'_>) -> Result<Self, RedisOpenError> {
        if parameters.any(&["sentinel_user", "sentinel_password", "sentinel_tls"]) {
            return Err(malformed("a parameter of Sentinels needs `redis+sentinel://`"));
        }
        let server = connection(base, parameters)?;
        let may_be_in_clear = parameters.may_be_in_clear("tls")?;
        let certificates = parameters.certificates()?;
        let is_encrypted = matches!(server.addr(), ConnectionAddr::TcpTls { .. });
        if !is_encrypted && parameters.any(&["cacert", "cert", "key"]) {
            return Err(malformed("certificates need `rediss://`"));
        }
        if is_encrypted && may_be_in_clear {
            return Err(malformed("`rediss://` and `tls=disable` contradict each other"));
        }
        let address = Self {
            server: certificates.of_connections(server).map_err(RedisOpenError::Url)?,
            #[cfg(any(feature = "redis-cluster", all(feature = "redis-sentinel", feature = "tls")))]
            certificates,
            may_be_in_clear,
            #[cfg(feature = "redis-sentinel")]
            sentinels: None,
        };
        address.check(address.server.addr())?;
        Ok(address)
    }

    #[cfg(feature = "redis-sentinel")]
    fn of_sentinels(scheme: &str, rest: &str, parameters: &Parameters<'_>) -> Result<Self, RedisOpenError> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let (service, database) = path.split_once('/').unwrap_or((path, ""));
        let service = decoded(service)?;
        if service.is_empty() {
            return Err(malformed("it names no service: write `redis+sentinel://HOST:26379,HOST:26379/SERVICE/0`"));
        }
        let hosts: Vec<String> = hosts.split(',').map(with_port).collect();
        let at = if user.is_empty() { "" } else { "@" };
        let server = format!("{scheme}://{user}{at}{}/{database}", hosts.first().map_or("", String::as_str));
        let certificates = parameters.certificates()?;
        let in_clear = parameters.may_be_in_clear("sentinel_tls")?;
        let sentinel_scheme = if in_clear { "redis" } else { scheme };
        let sentinels: Result<Vec<_>, _> = hosts
            .iter()
            .map(|host| connection(&format!("{sentinel_scheme}://{host}/"), &Parameters::default()))
            .map(|address| certificates.of_connections(address?).map_err(RedisOpenError::Url))
            .collect();
        let sentinels = sentinels?;
        let alone =
            Parameters(parameters.0.iter().filter(|(name, ..)| !name.starts_with("sentinel_")).cloned().collect());
        let mut server = Self::of_server(&server, &alone)?;
        if !in_clear {
            sentinels.iter().try_for_each(|sentinel| server.check(sentinel.addr()))?;
        }
        let of = |name| parameters.get(name).map(ToOwned::to_owned);
        let (user, password) = (of("sentinel_user"), of("sentinel_password"));
        server.sentinels = Some(Sentinels { addresses: sentinels, service, user, password });
        Ok(server)
    }

    /// Rejects an address at which passwords and records would be sent in clear to another machine.
    pub(super) fn check(&self, address: &ConnectionAddr) -> Result<(), RedisOpenError> {
        match address {
            ConnectionAddr::Tcp(host, _) => self.check_host(host),
            _ => Ok(()),
        }
    }

    /// Returns whether nothing is sent in clear, or the URL allows it.
    pub(super) fn may_lead_anywhere(&self) -> bool {
        matches!(self.server.addr(), ConnectionAddr::TcpTls { .. }) || self.may_be_in_clear
    }

    /// Rejects a server that another one names if passwords and records would be sent in clear to another machine.
    pub(super) fn check_host(&self, host: &str) -> Result<(), RedisOpenError> {
        if self.may_lead_anywhere() || is_local(host) {
            return Ok(());
        }
        Err(RedisOpenError::InClear { host: host.to_owned() })
    }
}

/// Parses the parts of the URL that `redis` reads.
fn connection(base: &str, parameters: &Parameters<'_>) -> Result<ConnectionInfo, RedisOpenError> {
    let read_by_redis = parameters.0.iter().filter(|(name, ..)| READ_BY_REDIS.contains(name));
    let read_by_redis: Vec<_> = read_by_redis.map(|(name, encoded, _)| format!("{name}={encoded}")).collect();
    let information = format!("{base}?{}", read_by_redis.join("&")).into_connection_info();
    let information = information.map_err(|error| {
        // Only the text of the client's error shows that TLS is missing.
        if error.to_string().contains("TLS") { RedisOpenError::Tls } else { RedisOpenError::Url(error) }
    })?;
    // The user would need another right to set the name of the library.
    let settings = information.redis_settings().clone().set_skip_set_lib_name();
    Ok(information.set_redis_settings(settings).set_tcp_settings(tcp_settings()))
}

const READ_BY_REDIS: [&str; 4] = ["protocol", "db", "user", "pass"];

const OTHERS: [&str; 7] = ["tls", "cacert", "cert", "key", "sentinel_user", "sentinel_password", "sentinel_tls"];

/// The parameters: name, value as it is written, and decoded value.
#[derive(Default)]
struct Parameters<'a>(Vec<(&'a str, &'a str, String)>);

impl<'a> Parameters<'a> {
    fn of(text: &'a str) -> Result<Self, RedisOpenError> {
        let mut parameters = Self::default();
        for parameter in text.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if !READ_BY_REDIS.contains(&name) && !OTHERS.contains(&name) {
                // The message does not repeat the parameter, because it may be a part of a password that is not
                // percent-encoded.
                return Err(malformed(
                    "it has an unknown parameter; these are known: protocol, tls, cacert, cert, key; for a socket db, user, \
                     pass; for Sentinels sentinel_user, sentinel_password, sentinel_tls",
                ));
            }
            if parameters.get(name).is_some() {
                return Err(malformed("it has one parameter twice"));
            }
            parameters.0.push((name, value, decoded(value)?));
        }
        Ok(parameters)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(.., value)| value.as_str())
    }

    fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.get(name).is_some())
    }

    fn may_be_in_clear(&self, name: &str) -> Result<bool, RedisOpenError> {
        match self.get(name) {
            None => Ok(false),
            Some("disable") => Ok(true),
            Some(_) => Err(malformed("`tls` and `sentinel_tls` can only be `disable`: `rediss://` enables TLS")),
        }
    }

    fn certificates(&self) -> Result<Certificates, RedisOpenError> {
        let client = match (self.get("cert"), self.get("key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(malformed("`cert` and `key` belong together")),
        };
        Certificates::read(self.get("cacert"), client)
    }
}

fn decoded(text: &str) -> Result<String, RedisOpenError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| malformed("what is percent-encoded in it is no UTF-8"))
}

/// Adds the default port of Sentinels, which differs from the default port of servers.
#[cfg(feature = "redis-sentinel")]
fn with_port(host: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { host.to_owned() } else { format!("{host}:26379") }
}

fn malformed(problem: &'static str) -> RedisOpenError {
    RedisOpenError::Malformed { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        Address::of(url).err().unwrap_or_else(|| panic!("{url} is accepted")).to_string()
    }

    #[test]
    fn nothing_is_in_clear_to_another_machine_unless_written() {
        for url in ["redis://localhost/", "redis://[::1]:7000/1", "unix:///run/redis.sock", "redis://h/?tls=disable"] {
            assert!(Address::of(url).is_ok(), "{url}");
        }
        let told = error("redis://:secret@cache.example/?protocol=resp3");
        for part in ["cache.example", "`rediss://`", "`?tls=disable`"] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("secret"), "{told}");
    }

    #[test]
    fn a_mistake_in_a_parameter_is_an_error() {
        for (url, part) in [
            ("redis://localhost/?tsl=disable", "unknown parameter"),
            ("redis://localhost/?tls=disable&tls=disable", "twice"),
            ("redis://localhost/?tls=off", "only be `disable`"),
            ("redis://localhost/?cacert=ca.pem&cert=c.pem", "belong together"),
            ("redis://localhost/?sentinel_user=u", "redis+sentinel://"),
            ("redis://localhost/#insecure", "`?cacert=PATH`"),
        ] {
            let told = error(url);
            assert!(told.contains(part), "{part} in {told}");
        }
        #[cfg(feature = "tls")]
        for (url, part) in [
            ("redis://localhost/?cacert=/nowhere.pem", "`cacert`"),
            ("rediss://localhost/?tls=disable", "contradict"),
            ("rediss://localhost/?cacert=/dev/null", "`cacert`"),
        ] {
            let told = error(url);
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    #[cfg(feature = "redis-sentinel")]
    #[test]
    fn sentinels_have_a_port_and_credentials_of_their_own() {
        let url =
            "redis+sentinel://app:s%40crt@[::1],localhost:7000/my%2Dmaster/2?sentinel_user=s&sentinel_password=p%26q";
        let address = Address::of(url).expect("it is well-formed");
        assert_eq!(address.server.redis_settings().username(), Some("app"));
        assert_eq!(address.server.redis_settings().password(), Some("s@crt"));
        assert_eq!(address.server.redis_settings().db(), 2);
        let sentinels = address.sentinels.expect("there are some");
        let addresses: Vec<_> = sentinels.addresses.iter().map(|address| address.addr().to_string()).collect();
        assert_eq!(addresses, ["::1:26379", "localhost:7000"]);
        assert!(sentinels.addresses.iter().all(|address| address.redis_settings().password().is_none()));
        assert_eq!((sentinels.service.as_str(), sentinels.user.as_deref()), ("my-master", Some("s")));
        assert_eq!(sentinels.password.as_deref(), Some("p&q"));

        assert!(error("redis+sentinel://localhost").contains("names no service"));
        assert!(error("redis+sentinel://sentinel.example/m").contains("sentinel.example"));
    }
}
