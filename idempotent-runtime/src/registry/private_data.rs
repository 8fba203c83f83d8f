//! The settings of a registry that decide which data a store can read.

use crate::registry::build::RegistryBuilder;

impl RegistryBuilder {
    /// Stores digests of keys and callers, so a reader of the store sees neither keys nor callers.
    ///
    /// Add [`digest_with`](Self::digest_with): without a secret, a caller that can be guessed, such as a number, can be
    /// found by digesting all candidates, and the digests are the same in each deployment.
    ///
    /// Records that were made without this setting are no longer found: their retries run again. So turn it on before
    /// the first request. Later, change the scopes of the handlers at the same time, at a moment without retries.
    /// Operators find a record under [`RecordKey::digested`](crate::RecordKey::digested), or under
    /// `SealingKey::digested` of the secret.
    pub fn digest_keys(mut self) -> Self {
        self.at_rest.digest_keys = true;
        self
    }

    /// Sets the secret of this registry. The registry uses the secret for all values that it derives from keys and
    /// requests:
    ///
    /// | | without a secret | with it |
    /// |---|---|---|
    /// | [`downstream_key`](crate::Idempotency::downstream_key) | anyone who knows the whole request can compute it | only this service can |
    /// | digests of keys and callers under [`digest_keys`](Self::digest_keys) | SHA-256, the same in each deployment | HMAC-SHA-256 |
    /// | fingerprints | keyed by the first key of [`seal_with`](Self::seal_with), if any | keyed by the secret |
    ///
    /// **The secret never changes.** All processes of a deployment have the same secret, and each deployment has its
    /// own. The secret is not rotated with the sealing keys: with another secret, other services would take a retry for
    /// a new operation, and under `digest_keys` the registry would find no earlier record, so that retries **run
    /// again**. So use a separate key, and keep it in the same place as the sealing keys. Before you add the secret to
    /// a service that has requests in progress, see [`changing_a_policy`](crate::guide::changing_a_policy#secrets).
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, SealingKey, store::MemoryStore};
    ///
    /// # let (of_digests, of_records) = ("1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=", "8gKfEvGBwHnP0lH2yTn5e6aLx8k0Yx1m7P8qGJr3ZQ4=");
    /// let secret: SealingKey = of_digests.parse()?;
    /// let sealing_key: SealingKey = of_records.parse()?;
    /// let registry =
    ///     Registry::builder(MemoryStore::new()).digest_with(secret).digest_keys().seal_with(sealing_key).build();
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    #[cfg(feature = "seal")]
    pub fn digest_with(mut self, secret: crate::record::sealing::SealingKey) -> Self {
        self.at_rest.secret = Some(secret);
        self
    }

    /// Encrypts the headers and bodies of recorded responses and of the results of steps, and keys their fingerprints,
    /// with the first of these keys. Any of the keys can open a record.
    ///
    /// The status stays readable, and so do the scope, the length of the sealed data and, without
    /// [`digest_keys`](Self::digest_keys), caller and key. All that is replayed or compared is authenticated: status,
    /// header lines, body, fingerprint, time and expiry, with the record's key, store and
    /// [deployment](crate::SealingKeys::deployment). A record that was changed, or moved to another place, is rejected
    /// with 503 and logged. The same holds for a record that no key opens, for a record that its store has kept for
    /// longer than its `ttl`, and for a record that is not sealed, unless
    /// [`accept_unsealed_until`](Self::accept_unsealed_until) allows it. A rejected record never runs again.
    ///
    /// The `ttl` is compared by the clocks of the processes. They may differ by two seconds, or by a hundredth of the
    /// `ttl` if that is more. An attacker with write access to the store can still delete a record or put an older one
    /// of the same key in its place.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, SealingKey, store::MemoryStore};
    ///
    /// # let (this_year, last_year) = ("1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=", "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=");
    /// let keys: [SealingKey; 2] = [this_year.parse()?, last_year.parse()?];
    /// let registry = Registry::builder(MemoryStore::new()).seal_with(keys).build();
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the list of keys is empty.
    #[cfg(feature = "seal")]
    pub fn seal_with(mut self, keys: impl Into<crate::record::sealing::SealingKeys>) -> Self {
        self.at_rest.sealing = Some(keys.into());
        self.at_rest.only_opens = false;
        self
    }

    /// Reads records that are encrypted with one of these keys, and writes records, claims and fingerprints as a
    /// registry without keys does.
    ///
    /// Use this setting in a rolling deploy that turns [`seal_with`](Self::seal_with) on or off. First all processes
    /// get the keys by `open_with`. In the next deploy, the new processes have `seal_with`, and the old processes can
    /// read the records of the new ones. To turn sealing off, do the same in reverse. The last call of `seal_with` or
    /// `open_with` decides. See [`changing_a_policy`](crate::guide::changing_a_policy#secrets).
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, SealingKey, store::MemoryStore};
    ///
    /// # let from_environment = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=";
    /// let key: SealingKey = from_environment.parse()?;
    /// let before_sealing = Registry::builder(MemoryStore::new()).open_with(key).build();
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the list of keys is empty.
    #[cfg(feature = "seal")]
    pub fn open_with(mut self, keys: impl Into<crate::record::sealing::SealingKeys>) -> Self {
        self.at_rest.sealing = Some(keys.into());
        self.at_rest.only_opens = true;
        self
    }

    /// Replays unsealed records up to this time, and rejects them afterwards. Without this setting,
    /// [`seal_with`](Self::seal_with) rejects them at once.
    ///
    /// Use this setting for the change to `seal_with`: give the time of the deployment plus the longest `ttl` of all
    /// handlers, as a fixed time. A time that is counted from the start of the process moves with every restart. Before
    /// that time, an attacker with write access to the store can plant a response.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// use idempotent_runtime::{Registry, SealingKey, store::MemoryStore};
    ///
    /// let key: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse()?;
    /// // 2027-01-15, 08:00 UTC.
    /// let migrated = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    /// let registry = Registry::builder(MemoryStore::new()).seal_with(key).accept_unsealed_until(migrated).build();
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    #[cfg(feature = "seal")]
    pub fn accept_unsealed_until(mut self, time: std::time::SystemTime) -> Self {
        self.at_rest.accept_unsealed_until = Some(time);
        self
    }
}
