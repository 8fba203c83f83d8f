//! A store with one flaw, which wraps a store without flaws.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Cursor, Entry, EntryState, Held, MemoryStore, Page, Renewal, Resolution, Resolved,
    Store, StoreAdmin, StoreError, Token, UnknownOutcomes,
};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use idempotent_tests::lock;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    ClaimsAlways,
    ForgetsTheToken,
    LosesHeaderOrder,
    DecodesHeaders,
    LosesSensitivity,
    CutsBodies,
    OverwritesRecords,
    ReleasesRecords,
    HoldsUnknownKeys,
    ForgetsAttempts,
    NeverLapses,
    LapsesEarly,
    IgnoresRenewals,
    AnswersInReverse,
    AnswersOnlyWhatIsHeld,
    AnswersAllAsTheFirst,
    RenewsWithoutTokens,
    RenewsAllForAsLong,
    TrustsStaleTokens,
    IgnoresFingerprints,
    IgnoresFormerFingerprints,
    KeepsFormerFingerprints,
    IgnoresAfterCrash,
    RejectsLateHolders,
    KeepsAttemptsAfterRelease,
    NeverExpires,
    ForgetsClaimsEarly,
    GluesKeys,
    PurgesNothing,
    HidesLeases,
    HidesHolders,
    ListsOnePage,
    DeletesTheLiving,
    ForgetsUnknownOutcomes,
    ForgetsWhatItRejected,
    NeverTakesUnknownOver,
    CountsNothing,
    ForgetsWhatWasGivenBack,
    ForgetsItAtClaims,
    ForgetsItAtTakeovers,
    ForgetsItWithRecords,
    ForgetsItAtPurges,
    ForgetsItBesideOthers,
    ForgetsItForAMoment,
    ResolvesNothing,
    ResolvesWithoutHeaders,
    ForgetsItsResolution,
    KeepsAttemptsAfterResolutions,
    ResolvesUnderTheTokenOfTheClaim,
    ResolvesWhatRuns,
    ResolvesWithoutTokens,
    LetsEachResolutionWin,
    ChecksLeasesBeforeItResolves,
    KeepsResolutions,
    ExtendsNothing,
    ExtendsClaims,
    ExtendsWhatIsAbsent,
    NeverShortens,
    ExtendsWithoutALimit,
    KeepsWhatRuns,
    ListsRecordsAsClaims,
    ListsClaimsThatRun,
}

pub(crate) struct Flawed {
    store: MemoryStore,
    flaw: Flaw,
    /// The keys for which this store has forgotten that a claim was given back.
    forgotten: Mutex<HashSet<RecordKey>>,
}

impl Flawed {
    pub(crate) fn new(flaw: Flaw) -> Arc<Self> {
        Arc::new(Self { store: MemoryStore::new(), flaw, forgotten: Mutex::default() })
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &RecordKey) -> RecordKey {
        if self.has(Flaw::GluesKeys) {
            let glued = format!("{}:{}:{}", key.scope(), key.caller().unwrap_or_default(), key.key());
            return RecordKey::new("glued", None, &glued);
        }
        key.clone()
    }

    fn forget_what_was_given_back(&self, key: &RecordKey) {
        lock(&self.forgotten).insert(key.clone());
    }

    /// Purges and claims the key, and returns the token. A write with it succeeds, as in a store that compares no
    /// tokens.
    async fn seize(&self, key: &RecordKey) -> Token {
        let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
            .with_lease(Duration::from_mins(10))
            .with_ttl(Duration::from_mins(10))
            .with_after_crash(AfterCrash::Rerun);
        let _ = self.store.purge(key).await;
        let _ = self.store.claim(key, request).await;
        request.token
    }

    fn spoil_answer(&self, claim: &mut Claim, request: &ClaimRequest) {
        match claim {
            Claim::InFlight { .. } if self.has(Flaw::ClaimsAlways) => *claim = Claim::Acquired { attempt: 1 },
            Claim::Acquired { attempt } if self.has(Flaw::ForgetsAttempts) => *attempt = 1,
            Claim::Acquired { attempt }
                if self.has(Flaw::KeepsAttemptsAfterRelease) && request.fingerprint.as_bytes()[0] == 2 =>
            {
                *attempt += 2;
            }
            Claim::Completed(record) => self.spoil(record),
            _ => {}
        }
    }

    fn spoil(&self, record: &mut Record) {
        if self.has(Flaw::LosesHeaderOrder) {
            record.headers.reverse();
        }
        if self.has(Flaw::DecodesHeaders) {
            for (_, value) in &mut record.headers {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                *value = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("?"));
            }
        }
        if self.has(Flaw::LosesSensitivity) {
            record.headers.iter_mut().for_each(|(_, value)| value.set_sensitive(false));
        }
        if self.has(Flaw::CutsBodies)
            && let RecordedBody::Whole(body) = &mut record.body
        {
            body.truncate(1024 * 1024);
        }
    }
}

impl Store for Flawed {
    async fn claim(&self, key: &RecordKey, mut request: ClaimRequest) -> Result<Claim, StoreError> {
        let key = self.key(key);
        let has_forgotten = lock(&self.forgotten).contains(&key);
        if self.has(Flaw::ForgetsTheToken) || has_forgotten && request.after_crash == AfterCrash::Reject {
            request.token = Token::unique();
        }
        if self.has(Flaw::IgnoresFingerprints)
            && let Some(entry) = self.store.get(&key).await?
        {
            request.fingerprint = entry.fingerprint;
        }
        if self.has(Flaw::IgnoresFormerFingerprints) {
            request.former_fingerprint = None;
        }
        if self.has(Flaw::KeepsFormerFingerprints) {
            request.fingerprint = request.former_fingerprint.unwrap_or(request.fingerprint);
        }
        if self.has(Flaw::IgnoresAfterCrash) {
            request.after_crash = AfterCrash::Rerun;
        }
        let existing = self.store.get(&key).await?;
        if self.has(Flaw::ForgetsUnknownOutcomes) && existing.is_none() {
            request.after_crash = AfterCrash::Rerun;
        }
        if let Some(Entry { state: EntryState::Claimed { lease: None, .. }, expires_in, fingerprint, .. }) = existing {
            let only_looks = self.has(Flaw::ForgetsWhatItRejected) && request.after_crash == AfterCrash::Reject;
            if only_looks || self.has(Flaw::NeverTakesUnknownOver) && expires_in.is_none() {
                return Ok(Claim::Lapsed { fingerprint });
            }
        }
        if let Some(Entry { state: EntryState::Claimed { lease: Some(lease), token, .. }, .. }) = existing
            && self.has(Flaw::KeepsWhatRuns)
            && request.after_crash == AfterCrash::Reject
        {
            let _ = self.store.renew(&key, token, Duration::ZERO).await?;
            let _ = self.store.claim(&key, request).await?;
            let _ = self.store.renew(&key, token, lease).await?;
        }
        if self.has(Flaw::LapsesEarly) {
            request.lease /= 2;
        }
        if self.has(Flaw::NeverLapses) {
            request.lease = request.ttl;
        }
        if self.has(Flaw::ForgetsClaimsEarly) {
            request.ttl = request.lease / 4;
        }
        let mut claim = self.store.claim(&key, request).await?;
        if let Claim::Acquired { attempt } = claim
            && (self.has(Flaw::ForgetsItAtClaims) || self.has(Flaw::ForgetsItAtTakeovers) && attempt > 1)
        {
            self.forget_what_was_given_back(&key);
        }
        self.spoil_answer(&mut claim, &request);
        Ok(claim)
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        if self.has(Flaw::IgnoresRenewals) && !lease.is_zero() {
            return Ok(Held::Yes);
        }
        if self.has(Flaw::HoldsUnknownKeys) {
            let _ = self.store.renew(key, token, lease).await?;
            return Ok(Held::Yes);
        }
        self.store.renew(&self.key(key), token, lease).await
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let mut renewals = renewals.to_vec();
        if self.has(Flaw::RenewsAllForAsLong)
            && let Some(longest) = renewals.iter().map(|renewal| renewal.lease).max()
        {
            for renewal in &mut renewals {
                renewal.lease = longest;
            }
        }
        if self.has(Flaw::RenewsWithoutTokens) {
            for renewal in &mut renewals {
                if let Ok(Some(Entry { state: EntryState::Claimed { token, .. }, .. })) =
                    self.store.get(&renewal.key).await
                {
                    renewal.token = token;
                }
            }
        }
        let mut answers = Vec::new();
        for Renewal { key, token, lease, .. } in &renewals {
            answers.push(self.renew(key, *token, *lease).await);
        }
        if self.has(Flaw::AnswersInReverse) {
            answers.reverse();
        }
        if self.has(Flaw::AnswersOnlyWhatIsHeld) {
            answers.retain(|answer| matches!(answer, Ok(Held::Yes)));
        }
        if self.has(Flaw::AnswersAllAsTheFirst) {
            let is_held = matches!(answers.first(), Some(Ok(Held::Yes)));
            answers.fill_with(|| Ok(if is_held { Held::Yes } else { Held::No }));
        }
        answers
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let key = self.key(key);
        if self.has(Flaw::ForgetsItWithRecords) {
            self.forget_what_was_given_back(&key);
        }
        let ttl = if self.has(Flaw::NeverExpires) { Duration::from_hours(1) } else { ttl };
        if self.has(Flaw::OverwritesRecords) || self.has(Flaw::TrustsStaleTokens) {
            let seized = self.seize(&key).await;
            return self.store.complete(&key, seized, record, ttl).await;
        }
        if self.has(Flaw::RejectsLateHolders)
            && let Some(Entry { state: EntryState::Claimed { lease: None, .. }, .. }) = self.store.get(&key).await?
        {
            return Ok(Held::No);
        }
        self.store.complete(&key, token, record, ttl).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        if self.has(Flaw::ReleasesRecords) {
            return Ok(if self.store.purge(key).await? { Held::Yes } else { Held::No });
        }
        let key = self.key(key);
        let is_free = self.store.get(&key).await?.is_none();
        if self.has(Flaw::ForgetsWhatWasGivenBack) && is_free {
            return Ok(Held::No);
        }
        if self.has(Flaw::ForgetsItForAMoment) && self.store.get(&key).await?.is_none() {
            tokio::task::yield_now().await;
            return self.store.release(&RecordKey::new("another", None, "key"), token).await;
        }
        let held = self.store.release(&key, token).await;
        if self.has(Flaw::ForgetsItBesideOthers) && !is_free && matches!(held, Ok(Held::No)) {
            self.forget_what_was_given_back(&key);
        }
        held
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        match (self.store.get(key).await?, self.flaw) {
            (None, Flaw::ExtendsWhatIsAbsent)
            | (Some(Entry { state: EntryState::Completed { .. }, .. }), Flaw::ExtendsNothing) => Ok(Held::Yes),
            (Some(Entry { expires_in: Some(left), .. }), Flaw::NeverShortens) => {
                self.store.extend(key, ttl.max(left)).await
            }
            (Some(Entry { state: EntryState::Claimed { token, .. }, .. }), Flaw::ExtendsClaims) => {
                let _ = self.store.renew(key, token, ttl).await?;
                Ok(Held::No)
            }
            (_, Flaw::ExtendsWithoutALimit) => {
                let _ = std::time::Instant::now() + ttl;
                self.store.extend(key, ttl).await
            }
            _ => self.store.extend(&self.key(key), ttl).await,
        }
    }
}

impl StoreAdmin for Flawed {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let mut entry = self.store.get(&self.key(key)).await?;
        if let Some(Entry { state: EntryState::Claimed { lease, token, .. }, .. }) = &mut entry {
            match self.flaw {
                Flaw::HidesLeases => *lease = None,
                Flaw::HidesHolders => *token = Token::from_u128(0),
                _ => {}
            }
        }
        Ok(entry)
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        if self.has(Flaw::PurgesNothing) {
            return Ok(self.store.get(key).await?.is_some());
        }
        if self.has(Flaw::ForgetsItAtPurges) {
            self.forget_what_was_given_back(key);
        }
        self.store.purge(&self.key(key)).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        let found = self.store.get(key).await?;
        let held = match &found {
            Some(Entry { state: EntryState::Claimed { token, .. }, .. }) => Some(*token),
            _ => None,
        };
        match (resolution, self.flaw) {
            (_, Flaw::ResolvesNothing) | (Resolution::NotExecuted, Flaw::KeepsAttemptsAfterResolutions) => {
                Ok(Resolved::Yes)
            }
            (resolution, Flaw::ResolvesWhatRuns) => {
                let _ = self.store.renew(key, token, Duration::ZERO).await?;
                self.store.resolve(key, token, resolution).await
            }
            (resolution, Flaw::ResolvesWithoutTokens) => {
                self.store.resolve(key, held.unwrap_or(token), resolution).await
            }
            (Resolution::Executed { record, ttl, .. }, Flaw::ResolvesUnderTheTokenOfTheClaim)
                if held == Some(token) =>
            {
                let _ = self.store.complete(key, token, record, ttl).await?;
                Ok(Resolved::Yes)
            }
            (Resolution::Executed { mut record, ttl, .. }, Flaw::ResolvesWithoutHeaders) => {
                record.headers.clear();
                self.store.resolve(key, token, Resolution::executed(record, ttl)).await
            }
            (Resolution::Executed { record, .. }, Flaw::KeepsResolutions) => {
                self.store.resolve(key, token, Resolution::executed(record, Duration::from_hours(1))).await
            }
            (Resolution::Executed { .. }, Flaw::ForgetsItsResolution) if held.is_none() => Ok(Resolved::ChangedHands),
            (resolution, Flaw::LetsEachResolutionWin) => {
                let _ = self.store.resolve(key, token, resolution).await?;
                Ok(Resolved::Yes)
            }
            (resolution, Flaw::ChecksLeasesBeforeItResolves) => {
                let is_running = matches!(found, Some(Entry { state: EntryState::Claimed { lease: Some(_), .. }, .. }));
                tokio::task::yield_now().await;
                if is_running {
                    return Ok(Resolved::StillRunning);
                }
                let _ = self.store.renew(key, token, Duration::ZERO).await?;
                self.store.resolve(key, token, resolution).await
            }
            (resolution, _) => self.store.resolve(key, token, resolution).await,
        }
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        if self.has(Flaw::DeletesTheLiving) {
            let page = self.store.list(None, 1000).await?;
            for entry in &page.entries {
                let _ = self.store.purge(&entry.key).await?;
            }
        }
        self.store.delete_expired().await
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        if self.has(Flaw::CountsNothing) {
            return Ok(UnknownOutcomes::new());
        }
        self.store.unknown_outcomes().await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let mut page = self.store.list(cursor, limit).await?;
        if self.has(Flaw::ListsOnePage) {
            page.next = None;
        }
        Ok(page)
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        if self.has(Flaw::ListsRecordsAsClaims) {
            return self.store.list(cursor, limit).await.map(Some);
        }
        let Some(mut page) = self.store.claims(cursor, limit).await? else { return Ok(None) };
        if self.has(Flaw::ListsClaimsThatRun) {
            page.entries.retain(|entry| !matches!(entry.state, EntryState::Claimed { lease: None, .. }));
        }
        if self.has(Flaw::ListsOnePage) {
            page.next = None;
        }
        Ok(Some(page))
    }
}
