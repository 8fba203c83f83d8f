//! The certificates of encrypted connections.

use redis::{ConnectionInfo, RedisResult};

use crate::store::redis::open_error::RedisOpenError;

/// The certificate of the authority that has signed the server's certificate, and the client's own certificate.
#[cfg(feature = "tls")]
#[derive(Clone, Default)]
pub(super) struct Certificates(Option<redis::TlsCertificates>);

#[cfg(feature = "tls")]
impl Certificates {
    /// Reads these PEM files.
    pub(super) fn read(authority: Option<&str>, client: Option<(&str, &str)>) -> Result<Self, RedisOpenError> {
        use std::{fs, io};

        use redis::{ClientTlsConfig, TlsCertificates};
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};

        let read = |parameter: &'static str, path: &str| {
            let content = fs::read(path).and_then(|pem| {
                let is_right = if parameter == "key" {
                    PrivateKeyDer::from_pem_slice(&pem).is_ok()
                } else {
                    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                    certificates.is_ok_and(|certificates| !certificates.is_empty())
                };
                let wanted = if parameter == "key" { "no private key in PEM" } else { "no certificate in PEM" };
                if is_right { Ok(pem) } else { Err(io::Error::new(io::ErrorKind::InvalidData, wanted)) }
            });
            content.map_err(|source| RedisOpenError::Certificate { parameter, path: path.to_owned(), source })
        };
        if authority.is_none() && client.is_none() {
            return Ok(Self(None));
        }
        let root_cert = authority.map(|path| read("cacert", path)).transpose()?;
        let client = client.map(|(certificate, key)| {
            Ok(ClientTlsConfig { client_cert: read("cert", certificate)?, client_key: read("key", key)? })
        });
        Ok(Self(Some(TlsCertificates { client_tls: client.transpose()?, root_cert })))
    }

    /// Returns the same address with these certificates if its connections are encrypted.
    pub(super) fn of_connections(&self, information: ConnectionInfo) -> RedisResult<ConnectionInfo> {
        if !matches!(information.addr(), redis::ConnectionAddr::TcpTls { .. }) {
            return Ok(information);
        }
        choose_provider();
        let Some(certificates) = self.0.clone() else { return Ok(information) };
        Ok(redis::Client::build_with_tls(information, certificates)?.get_connection_info().clone())
    }

    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    pub(super) fn get(&self) -> Option<redis::TlsCertificates> {
        self.0.clone()
    }
}

/// Sets the default crypto provider of the process if it has none. `redis` uses that provider, and panics if there are
/// several and none is chosen. A choice of the application is kept.
#[cfg(feature = "tls")]
fn choose_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have set one meanwhile.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "tls"))]
#[derive(Clone, Default)]
pub(super) struct Certificates;

#[cfg(not(feature = "tls"))]
impl Certificates {
    pub(super) fn read(authority: Option<&str>, client: Option<(&str, &str)>) -> Result<Self, RedisOpenError> {
        if authority.is_none() && client.is_none() { Ok(Self) } else { Err(RedisOpenError::Tls) }
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "with feature `tls`, it may fail")]
    pub(super) fn of_connections(&self, information: ConnectionInfo) -> RedisResult<ConnectionInfo> {
        Ok(information)
    }
}
