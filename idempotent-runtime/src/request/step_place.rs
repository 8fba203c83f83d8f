//! Decides which execution owns a step, and under which claim the step is recorded.

use std::sync::Arc;

use http::response::Parts;
use http::{Method, Uri};

use crate::rejection::mark;
use crate::request::context::Execution;
use crate::request::coverage::innermost;
use crate::request::ownership::StepsOwner;
use crate::step::error::StepErrorKind;
use crate::step::names::{Owner, OwnerDigest};
use crate::step::rejections::StepRejections;
use crate::step::steps::Steps;
use crate::sync::atomic::Ordering;

/// Where the steps of an execution are recorded.
pub(super) enum StepPlace<'a> {
    Claim(&'a Steps, Owner),
    /// The request runs unguarded.
    Nowhere,
    /// The request has a key, and no guard around holds a claim.
    NoClaim,
    /// It is unknown whether a guard around the request shares its claim with the request.
    Unknown,
}

impl StepPlace<'_> {
    pub(super) fn steps(&self) -> Option<&Steps> {
        match self {
            Self::Claim(steps, _) => Some(steps),
            Self::Nowhere | Self::NoClaim | Self::Unknown => None,
        }
    }
}

impl Execution {
    pub(crate) fn open_steps(&self, steps: Steps) {
        let _ = self.run.step_context.steps.set(steps);
    }

    /// Notes that `Idempotency` is extracted from a request with this method and URI.
    pub(super) fn set_target(&self, method: &Method, uri: &Uri) {
        let _ = self.run.step_context.target.set(Box::new((method.clone(), uri.clone())));
    }

    /// Returns the execution whose steps are taken through this one.
    pub(super) fn of_steps(self: &Arc<Self>) -> Result<&Arc<Self>, StepErrorKind> {
        match self.arrival.ownership.as_ref().map(|ownership| ownership.owner_of_steps()) {
            None | Some(StepsOwner::Itself) => Ok(self),
            Some(StepsOwner::Creator) => Ok(self.owner()),
            Some(StepsOwner::Unknown) => Err(StepErrorKind::OfAnotherHandler),
        }
    }

    pub(super) fn place_of_steps(self: &Arc<Self>) -> StepPlace<'_> {
        match self.claim_holder() {
            Some(holder) => match holder.run.step_context.steps.get() {
                Some(steps) => StepPlace::Claim(steps, self.owner_under(holder)),
                None => StepPlace::Nowhere,
            },
            None if self.may_have_lost_its_guard() => StepPlace::Unknown,
            None if self.has_had_a_guard() => StepPlace::NoClaim,
            None => StepPlace::Nowhere,
        }
    }

    /// Returns whether it is unknown if a guard shares its key and steps with this execution. For example, an extractor
    /// may have extracted `Idempotency` from a copy of its request's head, before the guard had the request.
    pub(super) fn may_have_lost_its_guard(&self) -> bool {
        let is_extracted_alone = self.run.step_context.target.get().is_some()
            && self.around().is_none()
            && self.arrival.ownership.is_none()
            && self.policy().is_none();
        self.may_be_shared() || is_extracted_alone && innermost().is_some_and(|guard| guard.granted().is_some())
    }

    /// Returns the guard under whose claim this execution runs: its own guard, or the nearest guard around it.
    fn claim_holder(self: &Arc<Self>) -> Option<&Arc<Self>> {
        if self.attempt().is_some() && !self.claim.is_over.load(Ordering::Acquire) {
            return Some(self);
        }
        self.claim.covered_by.get().or_else(|| self.shared())?.claim_holder()
    }

    /// Returns whether a guard took this request's key and holds no claim now, unless the guard let the request run
    /// unguarded.
    fn has_had_a_guard(&self) -> bool {
        if self.attempt().is_some() {
            return self.run.step_context.steps.get().is_some() || self.transaction().is_some();
        }
        let around = self.claim.covered_by.get().or_else(|| self.shared());
        self.identity.grant.get().is_some() || around.is_some_and(|around| around.has_had_a_guard())
    }

    /// Returns whether the claim belongs to a transaction: the claim of this execution, or of the guard under whose
    /// claim it runs.
    pub(super) fn is_in_transaction(&self) -> bool {
        let has_one =
            |execution: &Self| execution.transaction().is_some() && !execution.claim.is_over.load(Ordering::Acquire);
        has_one(self) && !self.has_answered() || self.claim.covered_by.get().is_some_and(|covering| has_one(covering))
    }

    /// Returns the owner by which the handlers that take steps under the claim of this guard are distinguished, in this
    /// attempt and in others.
    fn owner_under(self: &Arc<Self>, holder: &Arc<Self>) -> Owner {
        let mut digest = OwnerDigest::default();
        let mut execution = Some(self);
        while let Some(this) = execution.filter(|this| !Arc::ptr_eq(this, holder)) {
            // A middleware in front of a guard uses the same execution, but is not its handler.
            let is_handler = !Arc::ptr_eq(this, self) || !this.has_answered();
            match (this.policy().filter(|_| is_handler), this.run.step_context.target.get()) {
                (Some(policy), _) => digest.add(policy.scope(), policy.location().function_path()),
                (None, Some(target)) => {
                    let (method, uri) = &**target;
                    digest.add(method.as_str(), uri.path());
                }
                (None, None) => digest.add("", ""),
            }
            execution = this.around();
        }
        Owner { execution: self.run.step_context.id(), digest: digest.finish() }
    }

    /// Returns a text that distinguishes the requests that share the key of one guard, in every attempt. The text names
    /// the handlers and targets between this request and that guard. Returns `None` for the guard's own request.
    pub(super) fn path_under_key(self: &Arc<Self>) -> Option<Box<str>> {
        let mut digest = OwnerDigest::default();
        let mut execution = self;
        while execution.identity.grant.get().is_none() {
            if let Some(policy) = execution.policy() {
                digest.add(policy.scope(), policy.location().function_path());
            }
            if let Some(target) = execution.run.step_context.target.get() {
                let (method, uri) = &**target;
                digest.add(method.as_str(), uri.path_and_query().map_or("", |target| target.as_str()));
            }
            let Some(around) = execution.claim.covered_by.get().or_else(|| execution.shared()) else { break };
            execution = around;
        }
        digest.finish()
    }

    /// Returns the collection for rejections of steps that are taken through this execution. The collection belongs to
    /// the guard that holds the claim. Without such a guard, this execution keeps the collection if this execution has
    /// a transaction.
    pub(super) fn step_rejections(self: &Arc<Self>) -> Option<&Arc<StepRejections>> {
        // Without a key, the transaction belongs to no claim.
        let holder = self.claim_holder().or_else(|| self.transaction().map(|_| self));
        holder.map(|holder| holder.run.step_context.rejections.get_or_init(Arc::default))
    }

    /// Returns whether a response with this head is a rejection of a guard, or of a step under its claim, as far as
    /// that is known. Marks it so that the guards around recognise it too.
    pub(super) fn is_rejection(&self, parts: &mut Parts) -> bool {
        let is_of_a_step =
            self.run.step_context.rejections.get().is_some_and(|rejections| rejections.contain(parts.status));
        if is_of_a_step {
            mark::mark(parts);
        }
        mark::is_marked(parts)
    }
}
