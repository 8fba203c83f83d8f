//! The registry's secrets. They are not arguments, because `--help`, errors and the list of processes would show them.

use std::fs;
use std::path::PathBuf;

use idempotent_runtime::SealingKey;

use crate::failure::Failure;

/// The variable with the key of `seal_with`.
pub(crate) const SEALING_KEY: &str = "IDEMPOTENT_SEALING_KEY";

/// The variable with the secret of `digest_with`.
pub(crate) const DIGEST_KEY: &str = "IDEMPOTENT_DIGEST_KEY";

/// Returns the secret in this file or in the variable, or `None` if neither is given.
pub(crate) fn secret(file: Option<&PathBuf>, variable: &str) -> Result<Option<SealingKey>, Failure> {
    let text = match file {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|source| Failure::SecretFile { path: path.clone(), source })?;
            Some(text)
        }
        None => std::env::var(variable).ok(),
    };
    text.map(|text| text.parse()).transpose().map_err(Failure::Secret)
}
