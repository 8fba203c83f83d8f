//! The check whether a connection to a server leaves this machine.

use std::net::IpAddr;

/// Returns whether this host is this machine. A name that needs a look-up may lead to any machine.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_its_name_are_local() {
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "db", "localhost.example", "localhost.", "10.0.0.1", "128.0.0.1", "0.0.0.0", "[::]", "::2"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
