//! A store with one flaw fails the rule that forbids it.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use http::HeaderValue;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Cursor, Entry, EntryState, Held, MemoryStore, Page, Renewal, Store, StoreAdmin,
    StoreError, Token, UnknownOutcomes,
};
use idempotent_runtime::testing::conformance as rules;
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    ClaimsAlways,
    ForgetsTheToken,
    LosesHeaderOrder,
    DecodesHeaders,
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
    SweepsTheLiving,
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
}

struct Flawed {
    store: MemoryStore,
    flaw: Flaw,
    /// Where no claim is kept from arriving any more.
    forgotten: Mutex<HashSet<RecordKey>>,
}

impl Flawed {
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
        self.forgotten.lock().expect("no test panics in here").insert(key.clone());
    }

    /// Whoever holds the claim, as a store finds that does not compare tokens.
    async fn seize(&self, key: &RecordKey) -> Token {
        let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
            .with_lease(Duration::from_mins(10))
            .with_ttl(Duration::from_mins(10))
            .with_after_crash(AfterCrash::Rerun);
        let _ = self.store.purge(key).await;
        let _ = self.store.claim(key, request).await;
        request.token
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
        let has_forgotten = self.forgotten.lock().expect("no test panics in here").contains(&key);
        if self.has(Flaw::ForgetsTheToken) || has_forgotten && request.after_crash == AfterCrash::Reject {
            request.token = Token::unique();
        }
        if self.has(Flaw::IgnoresFingerprints)
            && let Some(entry) = self.store.get(&key).await?
        {
            request.fingerprint = entry.fingerprint;
        }
        if self.has(Flaw::IgnoresAfterCrash) {
            request.after_crash = AfterCrash::Rerun;
        }
        let standing = self.store.get(&key).await?;
        if self.has(Flaw::ForgetsUnknownOutcomes) && standing.is_none() {
            request.after_crash = AfterCrash::Rerun;
        }
        if let Some(Entry { state: EntryState::Claimed { lease: None, .. }, expires_in, fingerprint, .. }) = standing {
            let only_looks = self.has(Flaw::ForgetsWhatItRejected) && request.after_crash == AfterCrash::Reject;
            if only_looks || self.has(Flaw::NeverTakesUnknownOver) && expires_in.is_none() {
                return Ok(Claim::Lapsed { fingerprint });
            }
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
        match &mut claim {
            Claim::InFlight { .. } if self.has(Flaw::ClaimsAlways) => claim = Claim::Acquired { attempt: 1 },
            Claim::Acquired { attempt } if self.has(Flaw::ForgetsAttempts) => *attempt = 1,
            Claim::Acquired { attempt }
                if self.has(Flaw::KeepsAttemptsAfterRelease) && request.fingerprint.as_bytes()[0] == 2 =>
            {
                *attempt += 2;
            }
            Claim::Completed(record) => self.spoil(record),
            _ => {}
        }
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
}

impl StoreAdmin for Flawed {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let mut entry = self.store.get(&self.key(key)).await?;
        if self.has(Flaw::HidesLeases)
            && let Some(Entry { state: EntryState::Claimed { lease, .. }, .. }) = &mut entry
        {
            *lease = None;
        }
        if self.has(Flaw::HidesHolders)
            && let Some(Entry { state: EntryState::Claimed { token, .. }, .. }) = &mut entry
        {
            *token = Token::from_u128(0);
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

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        if self.has(Flaw::SweepsTheLiving) {
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
}

macro_rules! notices {
    ($($rule:ident: $($flaw:ident),+;)*) => {
        $(#[tokio::test(start_paused = true)]
        async fn $rule() {
            for flaw in [$(Flaw::$flaw),+] {
                let store = Arc::new(Flawed { store: MemoryStore::new(), flaw, forgotten: Mutex::default() });
                let judged = AssertUnwindSafe(rules::$rule(&store)).catch_unwind().await;
                let name = [$(stringify!($flaw)),+].join(" or ");
                assert!(judged.is_err(), "one of {name} was not noticed");
            }
        })*
    };
}

notices! {
    the_first_claim_is_acquired_and_the_second_is_in_flight: ClaimsAlways;
    of_64_concurrent_claims_one_is_acquired: ClaimsAlways;
    a_retried_claim_recognises_its_token: ForgetsTheToken;
    a_record_comes_back_whole: LosesHeaderOrder, DecodesHeaders, CutsBodies;
    a_second_completion_changes_nothing: OverwritesRecords;
    a_record_is_not_touched_by_its_token: ReleasesRecords;
    unknown_key_has_no_entry: HoldsUnknownKeys;
    expired_lease_is_taken_over_as_next_attempt: ForgetsAttempts, NeverLapses, LapsesEarly;
    a_renewal_keeps_the_claim: IgnoresRenewals;
    renewals_of_many_keys_are_answered_one_by_one: AnswersInReverse, AnswersOnlyWhatIsHeld, AnswersAllAsTheFirst,
        RenewsWithoutTokens, RenewsAllForAsLong;
    a_lease_of_zero_lapses_at_once: ForgetsAttempts;
    a_stale_token_can_neither_renew_complete_nor_release: TrustsStaleTokens;
    a_claim_that_was_given_back_does_not_arrive: ForgetsWhatWasGivenBack;
    others_let_no_claim_arrive_that_was_given_back: ForgetsItAtClaims, ForgetsItAtTakeovers, ForgetsItWithRecords;
    a_purge_lets_no_claim_arrive_that_was_given_back: ForgetsItAtPurges;
    a_claim_given_back_beside_another_does_not_arrive: ForgetsItBesideOthers;
    a_release_beside_its_claim_leaves_no_claim: ForgetsItForAMoment;
    another_fingerprint_never_takes_over: IgnoresFingerprints;
    reject_never_takes_over: IgnoresAfterCrash;
    late_holder_completes_if_not_taken_over: RejectsLateHolders;
    a_release_frees_the_key_and_the_attempts: KeepsAttemptsAfterRelease;
    a_record_expires: NeverExpires;
    claim_expires_ttl_after_last_renewal: ForgetsClaimsEarly;
    an_unknown_outcome_never_expires: ForgetsUnknownOutcomes;
    what_was_rejected_once_stays_rejected: ForgetsWhatItRejected;
    a_rerun_takes_an_unknown_outcome_over: NeverTakesUnknownOver;
    unknown_outcomes_are_counted: CountsNothing;
    different_keys_never_meet: GluesKeys;
    a_purge_removes_claims_and_records: PurgesNothing;
    get_describes_entry: HidesLeases, HidesHolders;
    a_listing_shows_every_entry_once: ListsOnePage;
    delete_expired_removes_expired_only: SweepsTheLiving;
}
