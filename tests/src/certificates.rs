//! Certificates of a test's own authority, as files for servers and clients.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::postgres::account;

/// A folder with certificates.
pub struct Certificates(TempDir);

impl Certificates {
    /// Creates the certificates. `ca.pem` has signed `server.pem` (for `localhost` and `127.0.0.1`), `named.pem` (for
    /// `localhost` only), `expired.pem`, and `client.pem` with the key `client.key`. All server certificates use the
    /// key `server.key`. `other-ca.pem` has signed nothing.
    ///
    /// # Panics
    ///
    /// When the certificates cannot be made.
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("certificates").expect("a temporary folder");
        // The server may run as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        let certificates = Self(folder);
        let (authority, other) = (authority("the test's own"), authority("another one"));
        certificates.write("ca.pem", &authority.pem());
        certificates.write("other-ca.pem", &other.pem());

        let key = KeyPair::generate().expect("a key");
        let sign = |name: &str, names: &[&str], is_expired: bool, key: &KeyPair| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let mut parameters = CertificateParams::new(names).expect("the names are well-formed");
            if is_expired {
                parameters.not_after = date_time_ymd(2020, 1, 1);
            }
            certificates.write(name, &parameters.signed_by(key, &authority).expect("it is signed").pem());
        };
        sign("server.pem", &["localhost", "127.0.0.1"], false, &key);
        sign("named.pem", &["localhost"], false, &key);
        sign("expired.pem", &["localhost", "127.0.0.1"], true, &key);
        certificates.write("server.key", &key.serialize_pem());
        let key = KeyPair::generate().expect("a key");
        sign("client.pem", &["app"], false, &key);
        certificates.write("client.key", &key.serialize_pem());
        certificates
    }

    /// The path of the file with this name.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::write(&path, content).expect("the file is written");
        if name == "server.key" {
            // PostgreSQL rejects a key file that other users can read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
            if let Some((_, user, group)) = account() {
                chown(&path, Some(user), Some(group)).expect("root gives the file away");
            }
        }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("it is signed")
}
