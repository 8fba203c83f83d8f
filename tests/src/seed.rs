//! The seed of a random test. It is printed, and can be passed to repeat a run.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;

const VARIABLE: &str = "IDEMPOTENT_TEST_SEED";

/// The seed of one run.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The seed in `IDEMPOTENT_TEST_SEED`, or else a new one in every run. Prints it.
    ///
    /// # Panics
    ///
    /// When the variable holds anything but a number.
    pub fn of_this_run() -> Self {
        let seed = match std::env::var(VARIABLE) {
            Ok(seed) => seed.parse().expect("IDEMPOTENT_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos())),
        };
        println!("{VARIABLE}={seed}");
        Self(seed)
    }

    /// A generator of random numbers that differs for each `number`.
    pub fn random(self, number: u64) -> Rng {
        // The factor is odd and far from 0, so that the seeds of neighbouring numbers share few bits.
        Rng::with_seed(self.0 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VARIABLE}={}", self.0)
    }
}
