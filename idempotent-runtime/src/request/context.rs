//! What the extractors, the guard and the future of one request share, and which guards are around it.

use std::sync::{Arc, OnceLock};

use http::Extensions;

use crate::fingerprint::Fingerprint;
use crate::key::{IdempotencyKey, RecordKey};
use crate::step::names::Names;
use crate::step::steps::Steps;
use crate::store::claim::Token;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::tokio::runtime::Handle;
use crate::sync::tokio::sync::Notify;
use crate::transaction::contract::HandlerTransaction;
use tracing::Id;
use tracing::Span;

/// In the extensions of a request: the guard that it has met last.
struct Met {
    execution: Arc<Execution>,
    /// This guard has passed the request on to what it guards. Another copy of the request, as a middleware in front of the
    /// guard makes one, is not inside: it is a duplicate.
    is_inside: bool,
}

/// Who clones a request's extensions makes another request, which may be sent at the same time: it has a key, steps, a
/// transaction and a fate of its own.
impl Clone for Met {
    fn clone(&self) -> Self {
        let Self { execution, is_inside } = self;
        let execution = if *is_inside { Arc::clone(execution) } else { Arc::new(execution.beside()) };
        Self { execution, is_inside: *is_inside }
    }
}

/// What one request's extractors, its engine and whoever polls it share.
#[derive(Default)]
pub(crate) struct Execution {
    pub(crate) detach_state: DetachState,
    /// Another run, of a request that the handler forwards, must not share it.
    pub(super) has_entered: AtomicBool,
    pub(super) grant: OnceLock<Grant>,
    pub(super) unkeyed: OnceLock<Token>,
    pub(super) transaction: OnceLock<Arc<dyn HandlerTransaction>>,
    /// That of the nearest guard around this one: of a layer, or of a handler that forwards its request.
    pub(super) around: Option<Arc<Self>>,
    /// The one among those around it under whose claim it runs, because its key is the same.
    pub(super) covered_by: OnceLock<Arc<Self>>,
    /// A guard beneath it has run under the claim that it runs under.
    pub(super) has_let_in: AtomicBool,
    /// What runs beneath it under its claim.
    pub(super) covered_runs: CoveredRuns,
    /// Its guard has taken the request, and has the last word on what is recorded.
    pub(super) has_taken_over: AtomicBool,
    /// What has run beneath it under its claim is recorded by nobody else.
    pub(super) must_answer: AtomicBool,
    /// Its claim has ended.
    pub(super) is_over: AtomicBool,
    pub(super) step_names: Names,
    /// Of a handler that runs under a claim.
    pub(super) steps: OnceLock<Steps>,
}

pub(super) struct Grant {
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// That no sealing key changes: an attempt may come after a rotation.
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
}

impl Execution {
    /// That of the run which a request with these extensions belongs to.
    pub(crate) fn of(extensions: &mut Extensions) -> Arc<Self> {
        if let Some(Met { execution, .. }) = extensions.get::<Met>()
            && !execution.has_entered.load(Ordering::Relaxed)
        {
            return Arc::clone(execution);
        }
        let execution = Arc::new(Self::beneath(extensions));
        extensions.insert(Met { execution: Arc::clone(&execution), is_inside: false });
        execution
    }

    /// One of its own, which knows the guards around it.
    pub(crate) fn beneath(extensions: &Extensions) -> Self {
        let around = extensions.get::<Met>().and_then(|Met { execution, is_inside }| {
            if *is_inside { Some(Arc::clone(execution)) } else { execution.around.clone() }
        });
        Self { around, ..Self::default() }
    }

    /// Another one, beneath the same guards.
    fn beside(&self) -> Self {
        Self { around: self.around.clone(), ..Self::default() }
    }

    /// What comes with these extensions from here on is inside of the guard that they have met last.
    pub(crate) fn pass_inside(extensions: &mut Extensions) {
        if let Some(met) = extensions.get_mut::<Met>() {
            met.is_inside = true;
        }
    }

    /// What comes with these extensions from here on is inside of this guard, which has entered.
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
        self.around.is_some() && self.has_taken_over.load(Ordering::Relaxed)
    }

    /// Whether a guard around it, however far, runs under this very key: then it runs under that one's claim.
    pub(crate) fn is_covered(&self, record_key: &RecordKey) -> bool {
        let Some(around) = self.around_with(record_key) else { return false };
        let claiming = around.covered_by.get().unwrap_or(around);
        let _ = self.covered_by.set(Arc::clone(claiming));
        true
    }

    /// Whether it is the first one to run beneath the guard around it that runs under this key: under one claim the request is
    /// executed once, however often something in between sends it on.
    pub(crate) fn is_let_in(&self, record_key: &RecordKey) -> bool {
        self.around_with(record_key).is_some_and(|around| !around.has_let_in.swap(true, Ordering::AcqRel))
    }

    /// The nearest guard around it that runs under this key, by a claim of its own or under that of another one.
    fn around_with(&self, record_key: &RecordKey) -> Option<&Arc<Self>> {
        let mut around = self.around.as_ref();
        while let Some(execution) = around {
            let is_covered = || execution.covered_by.get().is_some_and(|covering| covering.holds(record_key));
            if execution.holds(record_key) || is_covered() {
                return Some(execution);
            }
            around = execution.around.as_ref();
        }
        None
    }

    fn holds(&self, record_key: &RecordKey) -> bool {
        let grant = self.grant.get().is_some_and(|grant| grant.record_key == *record_key);
        // Who forwards a request after its response is recorded gets a replay of it.
        grant && !self.is_over.load(Ordering::Acquire)
    }

    /// Leaves the response to the guard under whose claim it was made, if there is one.
    pub(crate) fn leave_response(&self) {
        if let Some(covering) = self.covered_by.get() {
            covering.must_answer.store(true, Ordering::Relaxed);
        }
    }

    /// Whether its guard records the response, whatever guards beneath it have done: one that ran under its claim did not.
    pub(crate) fn must_answer(&self) -> bool {
        self.must_answer.load(Ordering::Relaxed)
    }

    /// What was granted to the claim that it runs under, or else to the nearest guard around it.
    pub(super) fn granted(&self) -> Option<&Grant> {
        match self.grant.get() {
            Some(grant) => Some(grant),
            None => self.covered_by.get().or(self.around.as_ref())?.granted(),
        }
    }

    /// The execution of a request without a key, if anybody may ask for it: a `Tx` does.
    pub(crate) fn of_unkeyed(extensions: &mut Extensions) -> Option<Arc<Self>> {
        let has_transactions = cfg!(any(feature = "postgres", feature = "sqlite"));
        (has_transactions || extensions.get::<Met>().is_some()).then(|| Self::of(extensions))
    }

    /// The handler is about to run: what comes now with this request's extensions is another run.
    pub(crate) fn enter(&self) {
        self.has_entered.store(true, Ordering::Relaxed);
    }

    /// Makes this the transaction of the run; false when it has one already.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn join(&self, transaction: Arc<dyn HandlerTransaction>) -> bool {
        self.transaction.set(transaction).is_ok()
    }

    pub(crate) fn transaction(&self) -> Option<Arc<dyn HandlerTransaction>> {
        self.transaction.get().cloned()
    }

    pub(crate) fn grant(&self, key: IdempotencyKey, record_key: RecordKey, fingerprint: Fingerprint, attempt: u32) {
        self.enter();
        let _ = self.grant.set(Grant { key, record_key, fingerprint, attempt });
    }

    /// The execution under whose claim it runs.
    pub(super) fn covering(&self) -> Option<&Arc<Self>> {
        self.covered_by.get()
    }

    /// For as long as the claim is held.
    pub(crate) fn hold(self: &Arc<Self>) -> Holding {
        Holding(Arc::clone(self))
    }

    pub(crate) fn open_steps(&self, steps: Steps) {
        let _ = self.steps.set(steps);
    }

    /// Those under the claim whose key [`Idempotency`] tells.
    pub(super) fn steps(&self) -> Option<&Steps> {
        match self.grant.get() {
            Some(_) => self.steps.get(),
            None => self.covered_by.get().or(self.around.as_ref())?.steps(),
        }
    }
}

/// Handlers beneath a guard that run under its claim, which must not end before they have.
#[derive(Default)]
pub(super) struct CoveredRuns {
    pub(super) running: AtomicUsize,
    pub(super) was_cut_off: AtomicBool,
    pub(super) ended: Notify,
}

/// Nothing runs under the claim of this execution when it is dropped.
pub(crate) struct Holding(Arc<Execution>);

impl Holding {
    /// Whether it is the execution of this guard, or of one around it.
    pub(super) fn is_beneath(&self, other: &Arc<Execution>) -> bool {
        let mut execution = Some(&self.0);
        while let Some(this) = execution {
            if Arc::ptr_eq(this, other) {
                return true;
            }
            execution = this.around.as_ref();
        }
        false
    }

    pub(super) fn is_of(&self, execution: &Arc<Execution>) -> bool {
        Arc::ptr_eq(&self.0, execution)
    }

    pub(super) fn is_beneath_a_guard(&self) -> bool {
        self.0.around.is_some()
    }

    /// Whether something runs under this claim beneath its guard, though the guard's own handler has ended.
    pub(super) fn covers_a_run(&self) -> bool {
        self.0.covered_runs.running.load(Ordering::Acquire) > 0
    }

    /// Whether something that ran under this claim was dropped half way, or panicked.
    pub(super) fn has_cut_off_a_run(&self) -> bool {
        self.0.covered_runs.was_cut_off.load(Ordering::Acquire)
    }

    pub(super) async fn until_covered_runs_ended(&self) {
        loop {
            // Made before the look: it hears of an end that comes in between.
            let ended = self.0.covered_runs.ended.notified();
            if !self.covers_a_run() {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// What the running future and whoever polls it tell each other.
#[derive(Default)]
pub(crate) struct DetachState {
    pub(super) must_finish: AtomicBool,
    pub(super) abandoned: AtomicBool,
    /// Where the running future was polled when it had to finish: its caller may drop it outside of every runtime.
    pub(super) runtime: OnceLock<Handle>,
    /// The number of the request's span, which the running future keeps open.
    pub(super) span: OnceLock<Id>,
}

impl DetachState {
    /// Whether the running future goes on when its caller drops it.
    pub(crate) fn set_must_finish(&self, must: bool) {
        if must && let Ok(runtime) = Handle::try_current() {
            let _ = self.runtime.set(runtime);
        }
        self.must_finish.store(must, Ordering::Relaxed);
    }

    /// Tells in which span the running future runs.
    pub(crate) fn set_span(&self, span: &Span) {
        if let Some(id) = span.id() {
            let _ = self.span.set(id);
        }
    }

    /// Whether the caller is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}
