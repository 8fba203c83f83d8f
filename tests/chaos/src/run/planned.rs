//! The request of one key, drawn at random.

use std::time::Duration;

use fastrand::Rng;

use super::{Plan, StoreKind, guarantees};
use crate::LEASE;
use crate::family::Family;
use crate::history::Guarantee;
use crate::server::{CREDENTIALS, Ending, FORWARD_TO, HowEnded, Order, Outcome};

/// The percentage of keys that belong to a family, in runs that have other keys too.
const OF_FAMILIES: u32 = 40;

/// One key and its request.
#[derive(Clone)]
pub(super) struct PlannedRequest {
    pub(super) key: String,
    pub(super) guarantee: Guarantee,
    pub(super) path: &'static str,
    pub(super) order: Order,
    pub(super) owner: Origin,
    /// The credentials and target of a request with the same key and body by another client, or for another target. It
    /// must never get the owner's record.
    pub(super) intruder: Option<Origin>,
}

/// The credentials and the target of a request.
#[derive(Clone, Default)]
pub(super) struct Origin {
    pub(super) headers: Vec<(&'static str, String)>,
    /// The same, as the handler reports it.
    pub(super) told: String,
}

impl PlannedRequest {
    pub(super) fn draw(number: u64, plan: &Plan, random: &mut Rng) -> Self {
        let is_of_family = !plan.families.is_empty() && (plan.is_limited || random.u32(..100) < OF_FAMILIES);
        let family = is_of_family.then(|| plan.families[random.usize(..plan.families.len())]);
        let guarantee = guarantee(family, plan.store, random);
        let mut planned = Self {
            key: format!("key-{number}"),
            guarantee,
            path: guarantee.path(),
            order: order(guarantee, plan, random),
            owner: Origin::default(),
            intruder: None,
        };
        if let Some(family) = family {
            planned.belong_to(family, plan.store, random);
        }
        planned
    }

    fn belong_to(&mut self, family: Family, store: StoreKind, random: &mut Rng) {
        let longer_than_a_lease = millis(LEASE * 3 / 2);
        match family {
            Family::BlockedThreads | Family::SeveralRuntimes => {
                let drawn = random.u32(..8);
                self.order.blocks = drawn < 2;
                if drawn < 5 {
                    self.order.millis = longer_than_a_lease;
                }
            }
            Family::FullDisk => {
                self.order = Order { bulky: random.bool(), ..Order::taking(random.u64(100..400)) };
            }
            Family::ShortTtl => {
                if random.bool() {
                    // Longer than the store is away.
                    self.order.millis = millis(LEASE * 5 / 2);
                }
            }
            Family::EndedTransactions => {
                let ways: &[HowEnded] =
                    if store == StoreKind::Sqlite { &HowEnded::OF_SQLITE } else { &HowEnded::OF_POSTGRES };
                let how = ways[random.usize(..ways.len())];
                let status = if random.bool() { 201 } else { 502 };
                let ending = Ending { how, effect_comes_first: random.bool(), status };
                self.order = Order { ending: Some(ending), ..Order::taking(random.u64(..60)) };
            }
            Family::MixedScope => self.order = Order::taking(random.u64(50..300)),
            Family::RotatedCredentials => {
                self.order = Order::taking(random.u64(..60));
                self.path = "/credentials";
                let owner = CREDENTIALS.map(|name| format!("{name}-of-a"));
                let mut intruder = owner.clone();
                let rotated = random.usize(..CREDENTIALS.len());
                intruder[rotated] = format!("{}-of-b", CREDENTIALS[rotated]);
                self.owner = Origin::with_credentials(&owner);
                self.intruder = Some(Origin::with_credentials(&intruder));
            }
            Family::ForwardedRequests => {
                self.order = Order::taking(random.u64(..60));
                self.path = "/batch";
                self.owner = Origin::forwarded_to("/accounts/1");
                self.intruder = Some(Origin::forwarded_to("/accounts/2"));
            }
        }
    }
}

impl Origin {
    fn with_credentials(values: &[String; CREDENTIALS.len()]) -> Self {
        Self { headers: CREDENTIALS.into_iter().zip(values.iter().cloned()).collect(), told: values.join(", ") }
    }

    fn forwarded_to(path: &str) -> Self {
        Self { headers: vec![(FORWARD_TO, path.to_owned())], told: path.to_owned() }
    }
}

fn guarantee(family: Option<Family>, store: StoreKind, random: &mut Rng) -> Guarantee {
    let possible = match family {
        None => guarantees(store),
        Some(Family::BlockedThreads | Family::SeveralRuntimes) => &[Guarantee::AtLeastOnce, Guarantee::AtMostOnce],
        Some(Family::FullDisk | Family::EndedTransactions) => &[Guarantee::ExactlyOnce],
        Some(Family::ShortTtl) => &[Guarantee::ShortTtl],
        Some(Family::MixedScope) => &[Guarantee::Mixed],
        Some(Family::RotatedCredentials | Family::ForwardedRequests) => &[Guarantee::AtLeastOnce],
    };
    possible[random.usize(..possible.len())]
}

fn order(guarantee: Guarantee, plan: &Plan, random: &mut Rng) -> Order {
    let outcome = match random.u32(..100) {
        0..8 => Outcome::Declined,
        8..16 => Outcome::FailsFirst,
        _ => Outcome::Done,
    };
    // A transaction has no lease, and in SQLite it blocks all others. A long one would block them for longer than their
    // leases.
    let may_be_long = guarantee != Guarantee::ExactlyOnce;
    let millis = match random.u32(..1_000) {
        long if may_be_long && long < plan.long_handlers => millis(LEASE * 3 / 2),
        _ => random.u64(..60),
    };
    let padding = if random.u32(..10) == 0 { 256 * 1024 } else { 0 };
    Order { outcome, padding, ..Order::taking(millis) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
