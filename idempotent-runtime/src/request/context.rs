//! What the extractors, the guard and the future of one request share.
//!
//! [`link`](crate::request::link) finds the execution of a request, [`guards_around`](crate::request::guards_around) says what it
//! may use of the guards around it, and [`step_place`](crate::request::step_place) where its steps are recorded.

use std::any::TypeId;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Method, Uri, Version};

use crate::idempotency_key::IdempotencyKey;
use crate::key::RecordKey;
use crate::policy::handle::PolicyHandle;
use crate::record::protection::Downstream;
use crate::registry::Registry;
use crate::rejection::request::Audience;
use crate::request::client::Client;
use crate::request::covered_runs::CoveredRuns;
use crate::request::destination::Destination;
use crate::request::detach_state::DetachState;
use crate::request::ownership::{ExtractorExecutions, Ownership};
use crate::request::step_context::StepContext;
use crate::store::claim::Token;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transaction::contract::HandlerTransaction;

/// State that the extractors of one request, its guard and its future share, by the stage that learns it.
#[derive(Default)]
pub(crate) struct Execution {
    pub(super) arrival: Arrival,
    pub(super) identity: Identified,
    pub(super) claim: ClaimState,
    pub(crate) run: RunState,
    answer: AnswerState,
}

/// *Extract*: where the request comes from, and where it has arrived.
#[derive(Default)]
pub(super) struct Arrival {
    /// The execution of the nearest guard around this one: a layer's, or that of a handler that forwards its request.
    pub(super) around: Option<Arc<Execution>>,
    /// Set if the request has no link to the guard whose handler sends it.
    pub(super) sent_by: OnceLock<Sender>,
    /// Identifies the client of the request, for the requests that its handler sends.
    pub(super) client: OnceLock<Client>,
    destination: Destination,
    /// Its response ends without a last frame.
    has_response_without_an_end: AtomicBool,
    is_head: AtomicBool,
    audience: OnceLock<Audience>,
    /// Set if the handler around it created this execution, by an extractor of its last argument.
    pub(super) ownership: Option<Arc<Ownership>>,
    pub(super) extractor_executions: ExtractorExecutions,
}

/// *Identify* and *fingerprint*: what the guard takes from the request by its policy.
#[derive(Default)]
pub(super) struct Identified {
    /// The policy of its guard. Unset if only a middleware or a handler without a guard has used this execution.
    pub(super) policy: OnceLock<PolicyHandle>,
    /// Its key is in the header that its policy names.
    pub(super) has_key_in_header: AtomicBool,
    /// Its request has come with another key than that of the guard around it.
    pub(super) has_other_key: AtomicBool,
    /// What its guard has asked its store for, whatever the answer was.
    pub(super) asked_for: OnceLock<Grant>,
    /// Identifies the execution of a request without a key.
    unkeyed: OnceLock<Token>,
}

/// *Claim*: the claim under which it runs.
#[derive(Default)]
pub(super) struct ClaimState {
    pub(super) grant: OnceLock<Grant>,
    transaction: OnceLock<Arc<dyn HandlerTransaction>>,
    /// The guard around it that has the same key, so that this execution runs under its claim.
    pub(super) covered_by: OnceLock<Arc<Execution>>,
    /// Its claim has ended.
    pub(super) is_over: AtomicBool,
}

/// *Run*: its handler, and what runs beneath it.
#[derive(Default)]
pub(crate) struct RunState {
    pub(crate) detach_state: DetachState,
    /// Its handler runs. A request that the handler forwards is another run, and must not share this execution.
    has_begun: AtomicBool,
    /// The arguments after the claim are being extracted: their extractors use this execution, as those before the claim do.
    is_extracting: AtomicBool,
    /// A guard beneath it runs, or has run, under the same claim.
    pub(super) has_covered_run: AtomicBool,
    /// The handlers beneath it that run under its claim.
    pub(super) covered_runs: CoveredRuns,
    pub(super) step_context: StepContext,
}

/// *Respond* and *settle*: who answers, and who records the answer.
#[derive(Default)]
struct AnswerState {
    /// Its guard has taken the request, and decides what is recorded.
    has_taken_over: AtomicBool,
    /// It must record the response of a guard beneath it, which ran under its claim and recorded nothing.
    must_answer: AtomicBool,
    /// Its guard has answered. A claim may last longer.
    has_answered: AtomicBool,
}

/// The guard whose handler sends a request without a link to that guard.
pub(super) struct Sender {
    pub(super) guard: Arc<Execution>,
    pub(super) is_same_client: bool,
    /// The registry names the same caller for this request as for the guard's claim.
    pub(super) has_same_caller: AtomicBool,
}

/// What a handler can know of its claim.
pub(super) struct Grant {
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// The same on every attempt, also after a rotation of the sealing keys.
    pub(super) downstream: Downstream,
    pub(super) attempt: u32,
}

impl Execution {
    pub(super) fn new(around: Option<Arc<Self>>, ownership: Option<Arc<Ownership>>) -> Self {
        Self { arrival: Arrival { around, ownership, ..Arrival::default() }, ..Self::default() }
    }

    /// The execution of the handler whose argument is extracted through this one.
    pub(super) fn owner(self: &Arc<Self>) -> &Arc<Self> {
        match (&self.arrival.ownership, &self.arrival.around) {
            (Some(ownership), Some(around)) if !ownership.is_taken() => around,
            _ => self,
        }
    }

    /// From now on, the guard of this execution decides what is recorded.
    pub(crate) fn take_over(&self) {
        self.answer.has_taken_over.store(true, Ordering::Relaxed);
    }

    /// Whether a layer around it must record nothing of its response.
    pub(crate) fn outranks_layer(&self) -> bool {
        self.around().is_some() && self.answer.has_taken_over.load(Ordering::Relaxed)
    }

    /// The nearest guard around it.
    pub(super) fn around(&self) -> Option<&Arc<Self>> {
        self.arrival.sent_by.get().map(|sender| &sender.guard).or(self.arrival.around.as_ref())
    }

    /// Its key is in the header that its policy names.
    pub(super) fn set_key_in_header(&self) {
        self.identity.has_key_in_header.store(true, Ordering::Relaxed);
    }

    /// Notes the client of a request with these headers.
    pub(super) fn set_client(&self, registry: &Registry, headers: &HeaderMap) {
        let _ = self.arrival.client.set(Client::of(registry, headers));
    }

    /// Whether it runs under this key, by its own claim or by the claim of a guard around it.
    pub(super) fn runs_under(&self, record_key: &RecordKey) -> bool {
        self.holds(record_key) || self.claim.covered_by.get().is_some_and(|covering| covering.holds(record_key))
    }

    fn holds(&self, record_key: &RecordKey) -> bool {
        let grant = self.claim.grant.get().is_some_and(|grant| grant.record_key == *record_key);
        // After the claim ends, a forwarded request with this key gets the replay.
        grant && !self.claim.is_over.load(Ordering::Acquire)
    }

    /// Leaves the response to the guard whose claim it ran under, if any.
    pub(crate) fn leave_response(&self) {
        if let Some(covering) = self.claim.covered_by.get() {
            covering.answer.must_answer.store(true, Ordering::Relaxed);
        }
    }

    /// Whether its guard must record the response, because a guard beneath it ran under its claim and did not.
    pub(crate) fn must_answer(&self) -> bool {
        self.answer.must_answer.load(Ordering::Relaxed)
    }

    /// Identifies the execution of a request without a key.
    pub(super) fn unkeyed(&self) -> Token {
        *self.identity.unkeyed.get_or_init(Token::unique)
    }

    /// The handler is about to run: from now on, a request with these extensions is another run.
    pub(crate) fn begin(&self) {
        self.run.has_begun.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.run.has_begun.load(Ordering::Relaxed)
    }

    pub(super) fn set_extracting(&self, is_extracting: bool) {
        self.run.is_extracting.store(is_extracting, Ordering::Relaxed);
    }

    /// Whether the arguments after the claim are being extracted.
    pub(crate) fn is_extracting(&self) -> bool {
        self.run.is_extracting.load(Ordering::Relaxed)
    }

    /// Makes this the transaction of the run; false when it has one already.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn join(&self, transaction: Arc<dyn HandlerTransaction>) -> bool {
        match &self.arrival.ownership {
            Some(ownership) => {
                ownership.offer(&transaction);
                true
            }
            None => self.claim.transaction.set(transaction).is_ok(),
        }
    }

    pub(super) fn transaction(&self) -> Option<&Arc<dyn HandlerTransaction>> {
        self.claim.transaction.get()
    }

    /// The extractors of the handler with this policy have all run. False when they ask for two transactions.
    pub(super) fn end_extraction(&self, policy: &PolicyHandle) -> bool {
        let _ = self.identity.policy.set(policy.clone());
        // What an extractor that forwards the request has asked for is not this handler's.
        let ownership = self.arrival.ownership.as_ref().filter(|_| policy.database().is_some());
        let own = ownership.and_then(|ownership| ownership.last_transaction());
        let adopted = self.arrival.extractor_executions.adopt();
        own.into_iter().chain(adopted).all(|transaction| self.claim.transaction.set(transaction).is_ok())
    }

    /// That of its handler, if one is known.
    pub(super) fn scope(&self) -> Option<&str> {
        self.identity.policy.get().map(|policy| policy.scope())
    }

    /// Its guard has answered, or goes on without its caller.
    pub(super) fn end_answering(&self, goes_on: bool) {
        self.answer.has_answered.store(!goes_on, Ordering::Release);
        if let Some(ownership) = &self.arrival.ownership {
            ownership.leave(goes_on);
        }
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answer.has_answered.load(Ordering::Acquire)
    }

    /// The record key of a request that this guard has, with this policy.
    pub(super) fn record_key(&self, policy: &PolicyHandle, caller: Option<&str>, key: &IdempotencyKey) -> RecordKey {
        let record_key = RecordKey::new(policy.scope(), caller, key.as_str());
        if !policy.may_share_scope() {
            return record_key;
        }
        // The guard of a handler whose extractor sends the request here may have the same scope, and claims its key later.
        let around = std::iter::successors(self.around(), |execution| execution.around());
        around.filter(|execution| !execution.has_begun()).fold(record_key, |key, _| key.in_extractor())
    }

    /// The type of what the guard runs.
    pub(super) fn set_handler(&self, handler: TypeId) {
        self.arrival.destination.set_handler(handler);
    }

    /// How its client learns that a response of unknown length is complete. HTTP/1.0 ends it with the connection, and a HEAD
    /// request gets no body.
    pub(crate) fn set_framing(&self, method: &Method, version: Version) {
        let is_head = method == Method::HEAD;
        self.arrival.is_head.store(is_head, Ordering::Relaxed);
        let is_without_an_end = is_head || version <= Version::HTTP_10;
        self.arrival.has_response_without_an_end.store(is_without_an_end, Ordering::Relaxed);
    }

    /// What a rejection of the request is rendered for.
    pub(super) fn set_audience(&self, audience: Audience) {
        let _ = self.arrival.audience.set(audience);
    }

    pub(crate) fn audience(&self) -> &Audience {
        self.arrival.audience.get_or_init(Audience::default)
    }

    /// Whether its client gets no body.
    pub(super) fn is_head(&self) -> bool {
        self.arrival.is_head.load(Ordering::Relaxed)
    }

    /// Whether its client takes no part of a response of unknown length for the whole.
    pub(super) fn has_response_with_an_end(&self) -> bool {
        !self.arrival.has_response_without_an_end.load(Ordering::Relaxed)
    }

    /// Where the request has arrived.
    pub(crate) fn set_route(&self, method: &Method, uri: &Uri) {
        self.arrival.destination.set_route(method, uri);
    }

    /// Whether both guard one handler.
    pub(super) fn has_the_handler_of(&self, other: &Self) -> bool {
        let [policy, others] = [self, other].map(|it| it.identity.policy.get().map(PolicyHandle::address));
        policy == others && self.arrival.destination == other.arrival.destination
    }

    /// Its guard asks a store for this.
    pub(super) fn ask_for(&self, key: IdempotencyKey, record_key: RecordKey, downstream: Downstream) {
        let _ = self.identity.asked_for.set(Grant { key, record_key, downstream, attempt: 1 });
    }

    pub(crate) fn grant(&self, key: IdempotencyKey, record_key: RecordKey, downstream: Downstream, attempt: u32) {
        self.begin();
        let _ = self.claim.grant.set(Grant { key, record_key, downstream, attempt });
    }

    /// For a handler that runs unguarded: it sees its key, and nothing runs under it.
    pub(super) fn grant_without_claim(&self, key: IdempotencyKey, record_key: RecordKey, downstream: Downstream) {
        self.grant(key, record_key, downstream, 1);
        self.claim.is_over.store(true, Ordering::Release);
    }
}
