//! The faults of servers and store while the clients send requests.

use std::time::Duration;

use fastrand::Rng;
use idempotent_tests::Mode;
use rustix::process::Signal;
use tokio::time::Instant;

use super::{Book, Fleet, Plan, TestedStore};
use crate::history::FaultKind;
use crate::{LEASE, now};

/// Causes one fault after another.
pub(super) struct Faults<'a> {
    pub(super) plan: &'a Plan,
    pub(super) fleet: &'a Fleet,
    pub(super) store: &'a TestedStore,
    pub(super) book: &'a Book,
}

/// Long enough to have an effect, and too short for a lease to expire.
const MOMENT: std::ops::Range<u64> = 100..900;

impl Faults<'_> {
    /// Causes one fault after another until the time of the plan is over. Each fault ends before the next one begins.
    pub(super) async fn inflict(&self) {
        let mut random = self.plan.random(1);
        let weights = &self.plan.faults;
        let of_the_store = u32::from(self.store.is_served());
        let choices: [(u32, Chosen); 9] = [
            (weights.kill, Chosen::Kill),
            (weights.long_stop, Chosen::LongStop),
            (weights.short_stop, Chosen::ShortStop),
            (weights.pause_store * of_the_store, Chosen::PauseStore),
            (weights.break_line * of_the_store, Chosen::BreakLine),
            (weights.restart_store * of_the_store, Chosen::RestartStore),
            (weights.long_outage, Chosen::LongOutage),
            (weights.fill_disk * u32::from(self.store.has_a_small_disk()), Chosen::FillDisk),
            (weights.end_runtime * u32::from(self.fleet.has_runtimes()), Chosen::EndRuntime),
        ];
        let sum: u32 = choices.iter().map(|(weight, _)| weight).sum();
        let ends_at = Instant::now() + self.plan.duration;
        while sum > 0 && Instant::now() < ends_at {
            tokio::time::sleep(Duration::from_millis(random.u64(200..1_200))).await;
            let mut drawn = random.u32(..sum);
            for (weight, choice) in &choices {
                if drawn < *weight {
                    self.bring(*choice, &mut random).await;
                    break;
                }
                drawn -= weight;
            }
        }
    }

    async fn bring(&self, choice: Chosen, random: &mut Rng) {
        let victim = random.usize(..self.fleet.len());
        let moment = Duration::from_millis(random.u64(MOMENT));
        match choice {
            Chosen::Kill => self.fleet.signal(victim, Signal::KILL),
            Chosen::LongStop => self.stop(victim, LEASE + LEASE / 2 + moment).await,
            Chosen::ShortStop => self.stop(victim, moment).await,
            Chosen::PauseStore => {
                let from = now();
                self.store.signal("STOP");
                tokio::time::sleep(moment).await;
                self.store.signal("CONT");
                self.book.fault(FaultKind::StorePaused, None, (from, now()));
            }
            Chosen::BreakLine => {
                let from = now();
                let delay = Duration::from_millis(random.u64(10..100));
                let modes = [Mode::Delays(delay), Mode::Stops, Mode::LosesAnswers, Mode::IsCut];
                self.store.set_line(modes[random.usize(..modes.len())]);
                tokio::time::sleep(moment).await;
                self.store.set_line(Mode::Passes);
                self.book.fault(FaultKind::LineBroken, None, (from, now()));
            }
            Chosen::RestartStore => {
                let from = now();
                self.store.restart().await;
                self.book.fault(FaultKind::StoreRestarted, None, (from, now()));
            }
            Chosen::LongOutage => {
                let from = now();
                self.store.be_away(LEASE + LEASE / 2 + moment).await;
                self.book.fault(FaultKind::StorePaused, None, (from, now()));
            }
            Chosen::FillDisk => {
                let from = now();
                self.store.fill_disk(moment).await;
                self.book.fault(FaultKind::DiskFull, None, (from, now()));
            }
            // The server itself records which runtime has ended.
            Chosen::EndRuntime => self.fleet.end_a_runtime().await,
        }
    }

    async fn stop(&self, victim: usize, time: Duration) {
        let (name, from) = (self.fleet.server(victim).name, now());
        self.fleet.signal(victim, Signal::STOP);
        tokio::time::sleep(time).await;
        self.fleet.signal(victim, Signal::CONT);
        let time = (from, now());
        self.book.fault(FaultKind::Stopped, Some(&name), time);
        if !self.store.is_served() {
            // If a process is stopped during a write to an embedded store, all other writes wait.
            self.book.fault(FaultKind::StorePaused, None, time);
        }
    }
}

#[derive(Clone, Copy)]
enum Chosen {
    Kill,
    LongStop,
    ShortStop,
    PauseStore,
    BreakLine,
    RestartStore,
    LongOutage,
    FillDisk,
    EndRuntime,
}
