//! Changes that the configuration of a program makes to the policies of its annotated handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::builder::wrong_lease;
use crate::policy::handle::PolicyHandle;
use crate::policy::invalid_policy::InvalidPolicy;
use crate::policy::registration::written_policies;
use crate::policy::values::InFlight;
use crate::policy::{Policy, Settings};

/// Times and sizes of a handler's policy that [`RegistryBuilder::policy`](crate::RegistryBuilder::policy) replaces.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "the closure returns it"]
pub struct PolicyOverride {
    ttl: Option<Duration>,
    lease: Option<Duration>,
    wait: Option<Duration>,
    max_body: Option<usize>,
}

impl PolicyOverride {
    /// Replaces `ttl`, how long a record is kept. A default lease is never longer than it.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Replaces `lease`, how long a dead process holds a key.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Replaces the time in `in_flight = wait("…")`, how long a duplicate waits.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// Replaces `max_body`, the largest recorded body in bytes.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = Some(bytes);
        self
    }

    fn over(self, policy: &Policy) -> Result<Policy, InvalidPolicy> {
        let mut settings: Settings = *policy.settings();
        // A default lease follows the ttl.
        let is_default = idempotent_policy::lease(None, settings.ttl) == Ok(settings.lease);
        let lease = self.lease.or_else(|| (!is_default).then_some(settings.lease));
        let mut wrong = Vec::new();
        let mut check = |option: &str, checked: Result<(), &str>| {
            wrong.extend(checked.err().map(|wrong| format!("`{option}` of {policy} {wrong}")));
        };
        if let Some(ttl) = self.ttl {
            check("ttl", idempotent_policy::check_ttl(ttl));
            settings.ttl = ttl;
        }
        if let Some(limit) = self.wait {
            let waits = matches!(settings.in_flight, InFlight::Wait(_));
            let waits =
                waits.then_some(()).ok_or("is not used: write `in_flight = wait(\"5s\")` there, or leave it out");
            check("wait", waits.and_then(|()| idempotent_policy::check_wait(limit)));
            settings.in_flight = InFlight::Wait(limit);
        }
        if let Some(lease) = self.lease {
            check("lease", idempotent_policy::check_lease(lease));
        }
        settings.max_body = self.max_body.unwrap_or(settings.max_body);
        match idempotent_policy::lease(lease, settings.ttl) {
            Ok(lease) => settings.lease = lease,
            Err(problem) => wrong.push(format!("{policy}: {}", wrong_lease(problem, settings.ttl))),
        }
        if wrong.is_empty() { Ok(policy.with_settings(settings)) } else { Err(InvalidPolicy::new(wrong)) }
    }
}

/// The changed policies, by the address of the written policy.
#[derive(Default)]
pub(crate) struct Overrides(HashMap<usize, Arc<Policy>>);

fn address(policy: &Policy) -> usize {
    std::ptr::from_ref(policy).addr()
}

impl Overrides {
    /// Changes the policies of the annotated handlers with this scope.
    pub(crate) fn add(&mut self, scope: &str, change: PolicyOverride) -> Result<(), InvalidPolicy> {
        let (mut is_known, mut known) = (false, Vec::new());
        for written in written_policies() {
            if written.scope() == scope {
                is_known = true;
                let changed = change.over(self.over(written))?;
                self.0.insert(address(written), Arc::new(changed));
            } else {
                known.push(format!("{:?}", written.scope()));
            }
        }
        if is_known {
            return Ok(());
        }
        known.sort_unstable();
        known.dedup();
        let others =
            if known.is_empty() { "there is none".to_owned() } else { format!("they have {}", known.join(", ")) };
        Err(InvalidPolicy::new(vec![format!(
            "no annotated handler has the scope {scope:?}; {others}. If it is that of an `IdempotencyLayer`, set the values \
             where its policy is built: `Policy::builder({scope:?}).ttl(ttl)`"
        )]))
    }

    /// Returns the policy to use in place of a written policy.
    pub(crate) fn over<'a>(&'a self, written: &'a Policy) -> &'a Policy {
        self.0.get(&address(written)).map_or(written, |policy| policy)
    }

    /// Returns the policy to use in place of a policy in use.
    pub(crate) fn in_use(&self, policy: PolicyHandle) -> PolicyHandle {
        match policy {
            PolicyHandle::Handler(written) if !self.0.is_empty() => match self.0.get(&address(written)) {
                Some(policy) => PolicyHandle::Overridden { written, policy: Arc::clone(policy) },
                None => PolicyHandle::Handler(written),
            },
            policy => policy,
        }
    }
}
