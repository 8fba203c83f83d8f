//! The state that the extractors, the guard and the future of one request share.
//!
//! [`link`](crate::request::link) finds the execution of a request, [`guards_around`](crate::request::guards_around)
//! decides what the execution may use of the guards around it, and [`step_place`](crate::request::step_place) decides
//! where its steps are recorded.

use std::any::TypeId;
use std::sync::{Arc, OnceLock};

use axum::extract::Request;

use crate::fingerprint::builder::Credentials;
use crate::idempotency_key::IdempotencyKey;
use crate::key::RecordKey;
use crate::policy::handle::PolicyHandle;
use crate::record::protection::Downstream;
use crate::registry::Registry;
use crate::rejection::request::Audience;
use crate::request::client::Client;
use crate::request::covered_runs::CoveredRuns;
use crate::request::detach_state::DetachState;
use crate::request::ownership::{ExtractorExecutions, Ownership};
use crate::request::request_head::RequestHead;
use crate::request::step_context::StepContext;
use crate::store::claim::Token;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::transaction::contract::HandlerTransaction;

/// State that the extractors of one request, its guard and its future share. Each field belongs to the stage that sets
/// it.
#[derive(Default)]
pub(crate) struct Execution {
    pub(super) arrival: Arrival,
    pub(super) identity: IdentityState,
    pub(super) claim: ClaimState,
    pub(crate) run: RunState,
    answer: AnswerState,
}

/// *Extract*: the origin of the request, and the handler that it has reached.
#[derive(Default)]
pub(super) struct Arrival {
    /// The execution of the nearest guard around this one: of a layer, or of a handler that forwards its request.
    pub(super) around: Option<Arc<Execution>>,
    /// Set if the request has no link to the guard whose handler sends it.
    pub(super) sent_by: OnceLock<Sender>,
    /// Unset for a request to an annotated handler if the header with the key is missing.
    head: OnceLock<RequestHead>,
    /// Set if an extractor of the last argument of the handler around this execution created it.
    pub(super) ownership: Option<Arc<Ownership>>,
    pub(super) extractor_executions: ExtractorExecutions,
}

/// What a guard runs.
struct Guarding {
    policy: PolicyHandle,
    /// The type of the handler or service.
    handler: TypeId,
    audience: Audience,
}

/// *Identify* and *fingerprint*: the data that the guard takes from the request, as its policy says.
#[derive(Default)]
pub(super) struct IdentityState {
    /// Unset if only a middleware or a handler without a guard has used this execution.
    guarding: OnceLock<Guarding>,
    /// The key is in the header that the policy names.
    pub(super) has_key_in_header: AtomicBool,
    /// The request arrived with another key than that of the guard around it.
    pub(super) has_other_key: AtomicBool,
    /// Set when the guard is about to send its claim to the store, whatever the store answers.
    pub(super) grant: OnceLock<Grant>,
    /// Identifies the execution of a request without a key.
    unkeyed: OnceLock<Box<Token>>,
}

/// *Claim*: the claim under which the handler runs.
#[derive(Default)]
pub(super) struct ClaimState {
    /// The number of the attempt. It is 0 until the handler may run.
    attempt: AtomicU32,
    transaction: OnceLock<Arc<dyn HandlerTransaction>>,
    /// The guard around this execution that has the same key. This execution runs under the claim of that guard.
    pub(super) covered_by: OnceLock<Arc<Execution>>,
    /// The claim of this execution has ended.
    pub(super) is_over: AtomicBool,
}

/// *Run*: the handler, and the runs beneath it.
#[derive(Default)]
pub(crate) struct RunState {
    pub(crate) detach_state: DetachState,
    /// The handler runs. A request that the handler forwards is another run, and must not share this execution.
    has_begun: AtomicBool,
    /// The arguments after the claim are being extracted. Their extractors use this execution, like those before the
    /// claim.
    is_extracting: AtomicBool,
    /// A guard beneath this execution runs, or has run, under the same claim.
    pub(super) has_covered_run: AtomicBool,
    /// The handlers beneath this one that run under its claim.
    pub(super) covered_runs: CoveredRuns,
    pub(super) step_context: StepContext,
}

/// *Respond* and *settle*: which guard answers, and which guard records the response.
#[derive(Default)]
struct AnswerState {
    /// The guard of this execution has taken the request, and decides what is recorded.
    has_taken_over: AtomicBool,
    /// The guard must record the response of a guard beneath it that ran under its claim and recorded nothing.
    must_answer: AtomicBool,
    /// The guard has answered. A claim may last longer.
    has_answered: AtomicBool,
}

/// The guard whose handler sends a request without a link to that guard.
pub(super) struct Sender {
    pub(super) guard: Arc<Execution>,
    pub(super) is_same_client: bool,
    /// The registry names the same caller for this request as for the guard's claim.
    pub(super) has_same_caller: AtomicBool,
}

/// The data about a claim that its handler can see.
pub(super) struct Grant {
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// The same on every attempt, even after a rotation of the sealing keys.
    pub(super) downstream: Downstream,
}

impl Execution {
    pub(super) fn new(around: Option<Arc<Self>>, ownership: Option<Arc<Ownership>>) -> Arc<Self> {
        // Made in place: a copy of about a kilobyte would cost more than all that is set here.
        let mut execution = Arc::<Self>::default();
        let arrival = &mut Arc::get_mut(&mut execution).expect("it is new").arrival;
        (arrival.around, arrival.ownership) = (around, ownership);
        execution
    }

    /// Returns the execution of the handler whose argument is extracted through this one.
    pub(super) fn owner(self: &Arc<Self>) -> &Arc<Self> {
        match (&self.arrival.ownership, &self.arrival.around) {
            (Some(ownership), Some(around)) if !ownership.is_taken() => around,
            _ => self,
        }
    }

    /// Lets the guard of this execution decide from now on what is recorded.
    pub(crate) fn take_over(&self) {
        self.answer.has_taken_over.store(true, Ordering::Relaxed);
    }

    /// Returns whether a layer around this execution must record nothing of its response.
    pub(crate) fn outranks_layer(&self) -> bool {
        self.around().is_some() && self.answer.has_taken_over.load(Ordering::Relaxed)
    }

    /// Returns the nearest guard around this execution.
    pub(super) fn around(&self) -> Option<&Arc<Self>> {
        self.arrival.sent_by.get().map(|sender| &sender.guard).or(self.arrival.around.as_ref())
    }

    /// Notes that the key is in the header that the policy names.
    pub(super) fn set_key_in_header(&self) {
        self.identity.has_key_in_header.store(true, Ordering::Relaxed);
    }

    /// Notes the head of the request. Returns the request's credentials: the headers that its registry counts as such.
    pub(super) fn arrive(&self, registry: Option<&Registry>, request: &Request) -> Credentials {
        let (head, credentials) = RequestHead::of(registry, request);
        let _ = self.arrival.head.set(head);
        credentials
    }

    /// Returns the head of the request, if its guard has noted it.
    pub(super) fn head(&self) -> Option<&RequestHead> {
        self.arrival.head.get()
    }

    /// Returns the client of the request, if its guard has a registry.
    pub(super) fn client(&self) -> Option<&Client> {
        self.head()?.client.as_ref()
    }

    /// Returns whether this execution runs under this key, by its own claim or by the claim of a guard around it.
    pub(super) fn runs_under(&self, record_key: &RecordKey) -> bool {
        self.holds(record_key) || self.claim.covered_by.get().is_some_and(|covering| covering.holds(record_key))
    }

    fn holds(&self, record_key: &RecordKey) -> bool {
        // After the claim ends, a forwarded request with this key gets the replay.
        self.attempt().is_some()
            && self.identity.grant.get().is_some_and(|grant| grant.record_key == *record_key)
            && !self.claim.is_over.load(Ordering::Acquire)
    }

    /// Leaves the response to the guard whose claim it ran under, if any.
    pub(crate) fn leave_response(&self) {
        if let Some(covering) = self.claim.covered_by.get() {
            covering.answer.must_answer.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the guard must record the response, because a guard beneath it ran under its claim and recorded
    /// nothing.
    pub(crate) fn must_answer(&self) -> bool {
        self.answer.must_answer.load(Ordering::Relaxed)
    }

    /// Returns the token that identifies the execution of a request without a key.
    pub(super) fn unkeyed(&self) -> Token {
        **self.identity.unkeyed.get_or_init(|| Box::new(Token::unique()))
    }

    /// Notes that the handler is about to run: from now on, a request with these extensions is another run.
    pub(crate) fn begin(&self) {
        self.run.has_begun.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.run.has_begun.load(Ordering::Relaxed)
    }

    pub(super) fn set_extracting(&self, is_extracting: bool) {
        self.run.is_extracting.store(is_extracting, Ordering::Relaxed);
    }

    /// Returns whether the arguments after the claim are being extracted.
    pub(crate) fn is_extracting(&self) -> bool {
        self.run.is_extracting.load(Ordering::Relaxed)
    }

    /// Makes this the transaction of the run. Returns false if the run already has one.
    #[cfg(feature = "__transactions")]
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

    /// Notes that the extractors before the claim have run. A rejection is rendered for this audience. Returns false if
    /// these extractors requested two transactions.
    pub(super) fn end_extraction_before_claim(
        &self,
        policy: &PolicyHandle,
        handler: TypeId,
        audience: Audience,
    ) -> bool {
        let _ = self.identity.guarding.set(Guarding { policy: policy.clone(), handler, audience });
        // If an extractor forwards the request, the transactions that the extractor requested do not belong to this
        // handler.
        let ownership = self.arrival.ownership.as_ref().filter(|_| policy.database().is_some());
        let own = ownership.and_then(|ownership| ownership.last_transaction());
        let adopted = self.arrival.extractor_executions.adopt();
        own.into_iter().chain(adopted).all(|transaction| self.claim.transaction.set(transaction).is_ok())
    }

    /// Returns the policy of the guard. Returns `None` if only a middleware or a handler without a guard has used this
    /// execution.
    pub(super) fn policy(&self) -> Option<&PolicyHandle> {
        self.identity.guarding.get().map(|guarding| &guarding.policy)
    }

    /// Returns the scope of the handler's policy, if one is known.
    pub(super) fn scope(&self) -> Option<&str> {
        self.policy().map(|policy| policy.scope())
    }

    /// Notes that the guard has answered, or continues without its caller if `goes_on`.
    pub(super) fn end_answering(&self, goes_on: bool) {
        self.answer.has_answered.store(!goes_on, Ordering::Release);
        if let Some(ownership) = &self.arrival.ownership {
            ownership.leave(goes_on);
        }
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answer.has_answered.load(Ordering::Acquire)
    }

    /// Returns the record key of the request for a guard with this policy.
    pub(super) fn record_key(&self, policy: &PolicyHandle, caller: Option<&str>, key: &IdempotencyKey) -> RecordKey {
        let record_key = RecordKey::new(policy.scope(), caller, key.as_str());
        if !policy.may_share_scope() {
            return record_key;
        }
        // An extractor of a handler whose guard has the same scope may send the request here. That guard claims its key
        // later.
        let around = std::iter::successors(self.around(), |execution| execution.around());
        around.filter(|execution| !execution.has_begun()).fold(record_key, |key, _| key.in_extractor())
    }

    /// Returns the audience for which a rejection of the request is rendered.
    pub(crate) fn audience(&self) -> Audience {
        self.identity.guarding.get().map(|guarding| guarding.audience.clone()).unwrap_or_default()
    }

    /// Returns whether both executions guard the same handler.
    pub(super) fn has_the_handler_of(&self, other: &Self) -> bool {
        let [own, others] = [self, other].map(|it| {
            let guarding = it.identity.guarding.get().map(|guarding| (guarding.policy.address(), guarding.handler));
            (guarding, it.head().map(|head| &head.destination))
        });
        own == others
    }

    /// Notes the grant with which the guard sends its claim to the store.
    pub(super) fn ask_for(&self, key: IdempotencyKey, record_key: RecordKey, downstream: Downstream) {
        let _ = self.identity.grant.set(Grant { key, record_key, downstream });
    }

    /// Notes that the handler may run, in this attempt.
    pub(super) fn set_attempt(&self, attempt: u32) {
        self.begin();
        // 0 stands for no attempt, whatever the store says.
        let _ = self.claim.attempt.compare_exchange(0, attempt.max(1), Ordering::Release, Ordering::Relaxed);
    }

    /// Returns the number of the attempt, if the handler may run or has run.
    pub(super) fn attempt(&self) -> Option<u32> {
        Some(self.claim.attempt.load(Ordering::Acquire)).filter(|&attempt| attempt > 0)
    }

    /// Sets the grant of a handler that runs unguarded: the handler sees its key, and nothing runs under the grant.
    pub(super) fn grant_without_claim(&self, key: IdempotencyKey, record_key: RecordKey, downstream: Downstream) {
        self.ask_for(key, record_key, downstream);
        self.set_attempt(1);
        self.claim.is_over.store(true, Ordering::Release);
    }
}
