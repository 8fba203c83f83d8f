//! A store with one flaw fails the rule that forbids the flaw.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use idempotent_runtime::testing::conformance as rules;

use crate::flawed::{Flaw, Flawed};

macro_rules! notices {
    ($($rule:ident: $($flaw:ident),+;)*) => {
        $(#[tokio::test(start_paused = true)]
        async fn $rule() {
            for flaw in [$(Flaw::$flaw),+] {
                let store = Flawed::new(flaw);
                let outcome = AssertUnwindSafe(rules::$rule(&store)).catch_unwind().await;
                let name = [$(stringify!($flaw)),+].join(" or ");
                assert!(outcome.is_err(), "one of {name} was not noticed");
            }
        })*
    };
}

notices! {
    the_first_claim_is_acquired_and_the_second_is_in_flight: ClaimsAlways;
    of_64_concurrent_claims_one_is_acquired: ClaimsAlways;
    a_retried_claim_recognises_its_token: ForgetsTheToken;
    a_record_comes_back_whole: LosesHeaderOrder, DecodesHeaders, LosesSensitivity, CutsBodies;
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
    a_takeover_replaces_the_former_fingerprint: IgnoresFormerFingerprints, KeepsFormerFingerprints;
    reject_never_takes_over: IgnoresAfterCrash;
    late_holder_completes_if_not_taken_over: RejectsLateHolders;
    a_release_frees_the_key_and_the_attempts: KeepsAttemptsAfterRelease;
    a_record_expires: NeverExpires;
    extend_moves_the_end_of_records_alone: ExtendsNothing, ExtendsClaims, ExtendsWhatIsAbsent, NeverShortens,
        ExtendsWithoutALimit;
    claim_expires_ttl_after_last_renewal: ForgetsClaimsEarly;
    an_unknown_outcome_never_expires: ForgetsUnknownOutcomes;
    what_was_rejected_once_stays_rejected: ForgetsWhatItRejected, KeepsWhatRuns;
    a_rerun_takes_an_unknown_outcome_over: NeverTakesUnknownOver;
    unknown_outcomes_are_counted: CountsNothing;
    different_keys_never_meet: GluesKeys;
    a_purge_removes_claims_and_records: PurgesNothing;
    a_resolution_records_what_was_executed: ResolvesNothing, ResolvesWithoutHeaders, ForgetsItsResolution;
    a_resolution_frees_what_was_not_executed: ResolvesNothing, KeepsAttemptsAfterResolutions;
    a_late_holder_does_not_get_a_resolution: ResolvesUnderTheTokenOfTheClaim;
    a_running_claim_is_not_resolved: ResolvesWhatRuns;
    a_resolution_needs_the_token_that_was_looked_at: ResolvesWithoutTokens, LetsEachResolutionWin;
    of_many_resolutions_one_wins: LetsEachResolutionWin;
    a_renewal_beside_a_resolution_excludes_it: ChecksLeasesBeforeItResolves;
    a_resolved_record_expires: KeepsResolutions;
    get_describes_entry: HidesLeases, HidesHolders;
    a_listing_shows_every_entry_once: ListsOnePage;
    a_listing_of_claims_shows_no_ended_claim: ListsRecordsAsClaims, ListsClaimsThatRun, ListsOnePage;
    a_listing_of_claims_shows_no_record: ListsRecordsAsClaims, ListsClaimsThatRun, ListsOnePage;
    delete_expired_removes_expired_only: DeletesTheLiving;
}
