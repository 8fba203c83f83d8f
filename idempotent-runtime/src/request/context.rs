//! What the extractors, the guard and the future of one request share, and which guards are around it.

use std::any::TypeId;
use std::sync::{Arc, OnceLock};

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Uri};

use crate::fingerprint::Fingerprint;
use crate::key::{IdempotencyKey, RecordKey, key_in};
use crate::policy::handle::PolicyHandle;
use crate::registry::Registry;
use crate::request::client::Client;
use crate::request::covered_runs::CoveredRuns;
use crate::request::destination::Destination;
use crate::request::detach_state::DetachState;
use crate::request::ownership::{ExtractorExecutions, Ownership};
use crate::request::step_context::StepContext;
use crate::store::claim::Token;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transaction::contract::HandlerTransaction;

/// In the extensions of a request: the last guard or extractor that it reached.
struct Met {
    execution: Arc<Execution>,
    /// The guard has passed this request to its handler. A copy that a middleware in front of the guard made is not inside: it
    /// is a duplicate.
    is_inside: bool,
}

impl Met {
    /// Whether the next guard is that of this execution.
    fn is_open(&self) -> bool {
        !self.is_inside
            && !self.execution.has_entered()
            && self.execution.ownership.as_ref().is_none_or(|ownership| ownership.is_open())
    }
}

/// A clone of a request's extensions belongs to another request, which may run at the same time: it has its own key, steps,
/// transaction and outcome.
impl Clone for Met {
    fn clone(&self) -> Self {
        let Self { execution, is_inside } = self;
        let execution = if *is_inside { Arc::clone(execution) } else { Arc::new(execution.beside()) };
        Self { execution, is_inside: *is_inside }
    }
}

/// State that the extractors of one request, its guard and its future share.
#[derive(Default)]
pub(crate) struct Execution {
    pub(crate) detach_state: DetachState,
    /// Another run, of a request that the handler forwards, must not share it.
    has_entered: AtomicBool,
    pub(super) grant: OnceLock<Grant>,
    /// What its guard has asked its store for, whatever the answer was.
    pub(super) asked_for: OnceLock<Grant>,
    unkeyed: OnceLock<Token>,
    pub(super) transaction: OnceLock<Arc<dyn HandlerTransaction>>,
    /// That of the nearest guard around this one: of a layer, or of a handler that forwards its request.
    around: Option<Arc<Self>>,
    /// The guard whose handler sends the request, where the request itself does not tell.
    sent_by: OnceLock<Sender>,
    /// Its key is in the header that its policy names.
    has_key_in_header: AtomicBool,
    /// Its request has come with another key than that of the guard around it.
    has_other_key: AtomicBool,
    /// Identifies the client of the request, for the requests that its handler sends.
    client: OnceLock<Client>,
    /// The guard around it that has the same key, so that this execution runs under its claim.
    pub(super) covered_by: OnceLock<Arc<Self>>,
    /// A guard beneath it has run under the claim that it runs under.
    has_let_in: AtomicBool,
    /// What runs beneath it under its claim.
    pub(super) covered_runs: CoveredRuns,
    /// Its guard has taken the request, and decides what is recorded.
    has_taken_over: AtomicBool,
    /// It must record the response of a guard beneath it, which ran under its claim and recorded nothing.
    must_answer: AtomicBool,
    /// Its claim has ended.
    pub(super) is_over: AtomicBool,
    /// Its guard has answered. A claim may last longer.
    has_answered: AtomicBool,
    /// Of its guard. Unset if only a middleware or a handler without a guard has used this execution.
    pub(super) policy: OnceLock<PolicyHandle>,
    destination: Destination,
    pub(super) step_context: StepContext,
    /// Set if an extractor of the last argument of the handler around it created it.
    pub(super) ownership: Option<Arc<Ownership>>,
    extractor_executions: ExtractorExecutions,
}

/// Who sends a request that does not tell of it.
struct Sender {
    guard: Arc<Execution>,
    is_same_client: bool,
    /// The registry names the caller of the guard's claim for this request too.
    has_same_caller: AtomicBool,
}

pub(super) struct Grant {
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// That no sealing key changes: an attempt may come after a rotation.
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
}

impl Execution {
    /// For an extractor: the execution that a request with these extensions belongs to.
    pub(crate) fn of(extensions: &mut Extensions) -> Arc<Self> {
        let execution = match extensions.get::<Met>() {
            Some(met) if met.is_open() => return Arc::clone(&met.execution),
            Some(Met { execution, is_inside: true }) if !execution.has_entered() => execution.for_extractor(),
            _ => Self::beneath(extensions),
        };
        let execution = Arc::new(execution);
        extensions.insert(Met { execution: Arc::clone(&execution), is_inside: false });
        execution
    }

    /// For the guard of a handler: from now on, a request with these extensions is inside of it.
    pub(crate) fn of_guard(extensions: &mut Extensions) -> Arc<Self> {
        let execution = match extensions.get::<Met>() {
            Some(met) if met.is_open() && met.execution.ownership.as_ref().is_none_or(|ownership| ownership.take()) => {
                Arc::clone(&met.execution)
            }
            _ => Arc::new(Self::beneath(extensions)),
        };
        extensions.insert(Met { execution: Arc::clone(&execution), is_inside: true });
        execution
    }

    /// A new execution, which knows the guards around it.
    pub(crate) fn beneath(extensions: &Extensions) -> Self {
        let around = extensions.get::<Met>().and_then(|Met { execution, is_inside }| {
            if *is_inside { Some(Arc::clone(execution)) } else { execution.around.clone() }
        });
        Self { around, ..Self::default() }
    }

    /// A new execution beneath the same guards.
    fn beside(&self) -> Self {
        match &self.around {
            Some(around) if self.ownership.is_some() && !around.has_entered() => around.for_extractor(),
            around => Self { around: around.clone(), ..Self::default() },
        }
    }

    /// For an extractor that runs while the last argument of its handler is extracted.
    fn for_extractor(self: &Arc<Self>) -> Self {
        Self { around: Some(Arc::clone(self)), ownership: Some(self.extractor_executions.add()), ..Self::default() }
    }

    /// The execution of the handler that it was extracted for.
    pub(super) fn owner(self: &Arc<Self>) -> &Arc<Self> {
        match (&self.ownership, &self.around) {
            (Some(ownership), Some(around)) if !ownership.is_taken() => around,
            _ => self,
        }
    }

    /// From now on, a request with these extensions is inside of this guard, which has entered.
    pub(crate) fn put_around(self: &Arc<Self>, extensions: &mut Extensions) {
        self.enter();
        extensions.insert(Met { execution: Arc::clone(self), is_inside: true });
    }

    /// The guard of this execution decides from here on.
    pub(crate) fn take_over(&self) {
        self.has_taken_over.store(true, Ordering::Relaxed);
    }

    /// Whether a layer around it must record nothing of its response.
    pub(crate) fn outranks_layer(&self) -> bool {
        self.around().is_some() && self.has_taken_over.load(Ordering::Relaxed)
    }

    pub(super) fn around(&self) -> Option<&Arc<Self>> {
        self.sent_by.get().map(|sender| &sender.guard).or(self.around.as_ref())
    }

    /// The guard around it, if this is a request of the same client: a handler may poll what other clients have sent.
    fn around_of_client(&self) -> Option<&Arc<Self>> {
        self.around().filter(|_| self.sent_by.get().is_none_or(|sender| sender.is_same_client))
    }

    /// Whether its response can be that of the request of `guard`, which is around it.
    pub(super) fn answers_for(self: &Arc<Self>, guard: &Arc<Self>) -> bool {
        let mut execution = Some(self);
        while let Some(this) = execution {
            if Arc::ptr_eq(this, guard) {
                return true;
            }
            let is_of_other_client = this.sent_by.get().is_some_and(|sender| !sender.is_same_client);
            if is_of_other_client || this.has_other_key.load(Ordering::Relaxed) {
                return false;
            }
            execution = this.around();
        }
        false
    }

    /// Whether `other` is this guard, or one around it.
    pub(super) fn is_beneath(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let mut execution = Some(self);
        while let Some(this) = execution {
            if Arc::ptr_eq(this, other) {
                return true;
            }
            execution = this.around();
        }
        false
    }

    /// The execution under whose claim it runs: a guard around it, however far, has this very key.
    pub(super) fn covered_by(&self, record_key: &RecordKey) -> Option<&Arc<Self>> {
        let around = self.around_with(record_key)?;
        let claiming = around.covered_by.get().unwrap_or(around);
        Some(self.covered_by.get_or_init(|| Arc::clone(claiming)))
    }

    /// Makes this the nearest guard around it, for a request with these headers.
    pub(super) fn is_sent_by(&self, guard: Arc<Self>, headers: &HeaderMap) {
        let is_same_client = guard.client.get().is_some_and(|client| client.has_sent(headers));
        let _ = self.sent_by.set(Sender { guard, is_same_client, has_same_caller: AtomicBool::default() });
    }

    /// A request with these headers has come to it.
    pub(super) fn compare_keys(&self, headers: &HeaderMap) {
        let has_other_key = self.around().is_some_and(|around| around.would_have_other_key(headers));
        self.has_other_key.store(has_other_key, Ordering::Relaxed);
    }

    fn would_have_other_key(&self, headers: &HeaderMap) -> bool {
        let (Some(policy), Some(grant)) = (self.policy.get(), self.granted()) else { return false };
        let key = key_in(&headers.get_all(policy.header()));
        self.has_key_in_header.load(Ordering::Relaxed) && key.is_some_and(|key| key.ok().as_ref() != Some(&grant.key))
    }

    pub(super) fn has_key_in_header(&self) {
        self.has_key_in_header.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_of_client(&self, registry: &Registry, headers: &HeaderMap) {
        let _ = self.client.set(Client::of(registry, headers));
    }

    /// Whether it is the first to run beneath the guard around it that has this key. Under one claim a request executes once,
    /// even if a middleware in between sends it several times.
    pub(super) fn is_let_in(&self, record_key: &RecordKey) -> bool {
        self.around_with(record_key).is_some_and(|around| !around.has_let_in.swap(true, Ordering::AcqRel))
    }

    /// Whether its handler has sent the request anew to itself. That is a duplicate: a handler may poll other clients'
    /// requests too.
    pub(super) fn is_sent_by_itself(&self, record_key: &RecordKey) -> bool {
        let (mut this, mut is_anew) = (self, false);
        while let Some(around) = this.around_of_client() {
            is_anew |= this.sent_by.get().is_some();
            if around.runs_under(record_key) && (!is_anew || around.has_the_handler_of(self)) {
                return is_anew;
            }
            this = around;
        }
        false
    }

    /// The nearest guard around it that runs under this key.
    fn around_with(&self, record_key: &RecordKey) -> Option<&Arc<Self>> {
        let mut around = self.around_of_client();
        while let Some(execution) = around {
            if execution.runs_under(record_key) {
                return Some(execution);
            }
            around = execution.around_of_client();
        }
        None
    }

    /// By a claim of its own or under that of another one.
    pub(super) fn runs_under(&self, record_key: &RecordKey) -> bool {
        self.holds(record_key) || self.covered_by.get().is_some_and(|covering| covering.holds(record_key))
    }

    fn holds(&self, record_key: &RecordKey) -> bool {
        let grant = self.grant.get().is_some_and(|grant| grant.record_key == *record_key);
        // After the claim ends, a forwarded request with this key gets the replay.
        grant && !self.is_over.load(Ordering::Acquire)
    }

    /// Leaves the response to the guard whose claim it ran under, if any.
    pub(crate) fn leave_response(&self) {
        if let Some(covering) = self.covered_by.get() {
            covering.must_answer.store(true, Ordering::Relaxed);
        }
    }

    /// Whether its guard must record the response, because a guard beneath it ran under its claim and did not.
    pub(crate) fn must_answer(&self) -> bool {
        self.must_answer.load(Ordering::Relaxed)
    }

    /// The nearest guard around it whose key and steps it sees. Without a link to that guard, its handler may be polling another
    /// client's request. Credentials can tell if no caller is named, and the registry if it names the caller.
    pub(super) fn shared(&self) -> Option<&Arc<Self>> {
        self.around_of_client().filter(|guard| self.is_of_caller(guard))
    }

    /// Whether a guard around it may share its key and steps with it, which cannot be known.
    pub(super) fn may_be_shared(&self) -> bool {
        self.around_of_client().is_some_and(|guard| !self.is_of_caller(guard))
    }

    fn is_of_caller(&self, guard: &Self) -> bool {
        let has_caller = || guard.granted().is_some_and(|grant| grant.record_key.caller().is_some());
        match self.sent_by.get() {
            Some(sender) => sender.has_same_caller.load(Ordering::Relaxed) || !has_caller(),
            None => true,
        }
    }

    /// Asks the registry for the caller of the request with this head, if another guard sends it.
    pub(super) fn compare_callers(&self, parts: &Parts) {
        let Some(sender) = self.sent_by.get() else { return };
        let asked = sender.guard.client.get().and_then(|client| client.caller_of(parts));
        let granted = sender.guard.granted().and_then(|grant| grant.record_key.caller());
        sender.has_same_caller.store(asked.is_some() && asked.as_deref() == granted.as_deref(), Ordering::Relaxed);
    }

    /// The grant of the claim that it runs under, or what its guard has asked for; or else that of the nearest guard around it.
    pub(super) fn granted(&self) -> Option<&Grant> {
        match self.grant.get().or_else(|| self.asked_for.get()) {
            Some(grant) => Some(grant),
            None => self.covered_by.get().or_else(|| self.shared())?.granted(),
        }
    }

    /// Identifies the execution of a request without a key.
    pub(super) fn unkeyed(&self) -> Token {
        *self.unkeyed.get_or_init(Token::unique)
    }

    /// For the guard of a request without a key, if an extractor may use its execution: a `Tx` does.
    pub(crate) fn of_unkeyed_guard(extensions: &mut Extensions) -> Option<Arc<Self>> {
        let has_transactions = cfg!(any(feature = "postgres", feature = "sqlite"));
        (has_transactions || extensions.get::<Met>().is_some()).then(|| Self::of_guard(extensions))
    }

    /// The handler is about to run: from now on, a request with these extensions is another run.
    pub(crate) fn enter(&self) {
        self.has_entered.store(true, Ordering::Relaxed);
    }

    fn has_entered(&self) -> bool {
        self.has_entered.load(Ordering::Relaxed)
    }

    /// Makes this the transaction of the run; false when it has one already.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn join(&self, transaction: Arc<dyn HandlerTransaction>) -> bool {
        match &self.ownership {
            Some(ownership) => {
                ownership.offer(&transaction);
                true
            }
            None => self.transaction.set(transaction).is_ok(),
        }
    }

    pub(super) fn transaction(&self) -> Option<&Arc<dyn HandlerTransaction>> {
        self.transaction.get()
    }

    /// The extractors of the handler with this policy have all run. False when they ask for two transactions.
    pub(super) fn end_extraction(&self, policy: &PolicyHandle) -> bool {
        let _ = self.policy.set(policy.clone());
        // What an extractor that forwards the request has asked for is not this handler's.
        let ownership = self.ownership.as_ref().filter(|_| policy.database().is_some());
        let own = ownership.and_then(|ownership| ownership.last_transaction());
        let adopted = self.extractor_executions.adopt();
        own.into_iter().chain(adopted).all(|transaction| self.transaction.set(transaction).is_ok())
    }

    /// Its guard has answered, or goes on without its caller.
    pub(super) fn end_answering(&self, goes_on: bool) {
        self.has_answered.store(!goes_on, Ordering::Release);
        if let Some(ownership) = &self.ownership {
            ownership.give_back(goes_on);
        }
    }

    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Acquire)
    }

    /// The record key of a request that this guard has, with this policy.
    pub(super) fn record_key(&self, policy: &PolicyHandle, caller: Option<&str>, key: &IdempotencyKey) -> RecordKey {
        let record_key = RecordKey::new(policy.scope(), caller, key.as_str());
        if !policy.may_share_scope() {
            return record_key;
        }
        // The guard of a handler whose extractor sends the request here may have the same scope, and claims its key later.
        let around = std::iter::successors(self.around(), |execution| execution.around());
        around.filter(|execution| !execution.has_entered()).fold(record_key, |key, _| key.in_extractor())
    }

    pub(super) fn runs(&self, handler: TypeId) {
        self.destination.runs(handler);
    }

    pub(crate) fn is_at(&self, method: &Method, uri: &Uri) {
        self.destination.is_at(method, uri);
    }

    /// Whether both guard one handler.
    fn has_the_handler_of(&self, other: &Self) -> bool {
        let [policy, others] = [self, other].map(|it| it.policy.get().map(|policy| &raw const **policy));
        policy == others && self.destination == other.destination
    }

    /// Its guard asks a store for this.
    pub(super) fn ask_for(&self, key: IdempotencyKey, record_key: RecordKey, fingerprint: Fingerprint) {
        let _ = self.asked_for.set(Grant { key, record_key, fingerprint, attempt: 1 });
    }

    pub(crate) fn grant(&self, key: IdempotencyKey, record_key: RecordKey, fingerprint: Fingerprint, attempt: u32) {
        self.enter();
        let _ = self.grant.set(Grant { key, record_key, fingerprint, attempt });
    }

    /// For a handler that runs unguarded: it sees its key, and nothing runs under it.
    pub(super) fn grant_without_claim(&self, key: IdempotencyKey, record_key: RecordKey, fingerprint: Fingerprint) {
        self.grant(key, record_key, fingerprint, 1);
        self.is_over.store(true, Ordering::Release);
    }
}
