//! Scripts about probes, sidecars, ephemeral containers, deadlines and evictions.

use std::{sync::Arc, time::Duration};

use expect_test::expect;

use super::{check, desired};
use crate::agent::spec::RestartPolicy;

#[test]
fn probes_decide_about_readiness_and_restarts() {
    check(
        desired("app?", RestartPolicy::OnFailure),
        "0 address
         0 prepared app
         1 started app
         2 probed app started
         3 probed app ready
         4 probed app started
         5 probed app dead
         6 exited app 0
         7 prepared app
         8 started app",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1)
            2 probed app started
                Active app#0=Running(since 1)
            3 probed app ready
                Active app#0=Running(since 1) ready
            4 probed app started
                Active app#0=Running(since 1)
            5 probed app dead
                ! Stop { container: 0, restart: 0, grace: 7s, because: Some(Liveness) }
                Active app#0=Stopping
            6 exited app 0
                ! Prepare(0)
                Active app#1=Preparing
            7 prepared app
                ! Start { container: 0, restart: 1 }
                Active app#1=Starting
            8 started app
                Active app#1=Running(since 8)
        "#]],
    );
}

#[test]
fn a_sidecar_holds_the_others_until_it_has_started() {
    check(
        desired("one+? two+ | app", RestartPolicy::Never),
        "0 address
         0 prepared one
         1 started one
         2 probed one started
         3 prepared two
         4 started two
         5 prepared app
         6 started app
         7 probed one ready
         8 delete 30
         9 exited app 0
         10 exited two 0
         11 exited one 0",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing two#0=Waiting app#0=Waiting
            0 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting two#0=Waiting app#0=Waiting
            1 started one
                Active one#0=Running(since 1) two#0=Waiting app#0=Waiting
            2 probed one started
                ! Prepare(1)
                Active one#0=Running(since 1) two#0=Preparing app#0=Waiting
            3 prepared two
                ! Start { container: 1, restart: 0 }
                Active one#0=Running(since 1) two#0=Starting app#0=Waiting
            4 started two
                ! Prepare(2)
                Active one#0=Running(since 1) two#0=Running(since 4) app#0=Preparing
            5 prepared app
                ! Start { container: 2, restart: 0 }
                Active one#0=Running(since 1) two#0=Running(since 4) app#0=Starting
            6 started app
                Active one#0=Running(since 1) two#0=Running(since 4) app#0=Running(since 6)
            7 probed one ready
                Active one#0=Running(since 1) two#0=Running(since 4) app#0=Running(since 6) ready
            8 delete 30
                ! Stop { container: 2, restart: 0, grace: 30s, because: None }
                Stopping(Deleted) one#0=Running(since 1) two#0=Running(since 4) app#0=Stopping wake=51 ready
            9 exited app 0
                ! Stop { container: 1, restart: 0, grace: 29s, because: None }
                Stopping(Deleted) one#0=Running(since 1) two#0=Stopping app#0=Ended(0) wake=51
            10 exited two 0
                ! Stop { container: 0, restart: 0, grace: 28s, because: None }
                Stopping(Deleted) one#0=Stopping two#0=Ended(0) app#0=Ended(0) wake=51
            11 exited one 0
                ! Remove
                Removing(Deleted) one#0=Ended(0) two#0=Ended(0) app#0=Ended(0) wake=21
        "#]],
    );
}

#[test]
fn a_sidecar_gets_a_moment_after_the_others_have_used_the_grace_up() {
    check(
        desired("side+ | app", RestartPolicy::Always),
        "0 address
         0 prepared side
         1 started side
         1 prepared app
         1 started app
         2 delete 10
         12 exited app 137",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active side#0=Preparing app#0=Waiting
            0 prepared side
                ! Start { container: 0, restart: 0 }
                Active side#0=Starting app#0=Waiting
            1 started side
                ! Prepare(1)
                Active side#0=Running(since 1) app#0=Preparing
            1 prepared app
                ! Start { container: 1, restart: 0 }
                Active side#0=Running(since 1) app#0=Starting
            1 started app
                Active side#0=Running(since 1) app#0=Running(since 1) ready
            2 delete 10
                ! Stop { container: 1, restart: 0, grace: 10s, because: None }
                Stopping(Deleted) side#0=Running(since 1) app#0=Stopping wake=21 ready
            12 exited app 137
                ! Stop { container: 0, restart: 0, grace: 2s, because: None }
                Stopping(Deleted) side#0=Stopping app#0=Ended(137) wake=21
        "#]],
    );
}

/// Hooks take the grace, and each container has a moment after its own.
#[test]
fn every_sidecar_gets_its_moment() {
    check(
        desired("one+ two+ | app", RestartPolicy::Always),
        "0 address
         0 prepared one
         0 started one
         0 prepared two
         0 started two
         1 prepared app
         1 started app
         2 delete 10
         14 exited app 137
         18 exited two 137
         22 exited one 137",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing two#0=Waiting app#0=Waiting
            0 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting two#0=Waiting app#0=Waiting
            0 started one
                ! Prepare(1)
                Active one#0=Running(since 0) two#0=Preparing app#0=Waiting
            0 prepared two
                ! Start { container: 1, restart: 0 }
                Active one#0=Running(since 0) two#0=Starting app#0=Waiting
            0 started two
                ! Prepare(2)
                Active one#0=Running(since 0) two#0=Running(since 0) app#0=Preparing
            1 prepared app
                ! Start { container: 2, restart: 0 }
                Active one#0=Running(since 0) two#0=Running(since 0) app#0=Starting
            1 started app
                Active one#0=Running(since 0) two#0=Running(since 0) app#0=Running(since 1) ready
            2 delete 10
                ! Stop { container: 2, restart: 0, grace: 10s, because: None }
                Stopping(Deleted) one#0=Running(since 0) two#0=Running(since 0) app#0=Stopping wake=25 ready
            14 exited app 137
                ! Stop { container: 1, restart: 0, grace: 2s, because: None }
                Stopping(Deleted) one#0=Running(since 0) two#0=Stopping app#0=Ended(137) wake=25
            18 exited two 137
                ! Stop { container: 0, restart: 0, grace: 2s, because: None }
                Stopping(Deleted) one#0=Stopping two#0=Ended(137) app#0=Ended(137) wake=25
            22 exited one 137
                ! Remove
                Removing(Deleted) one#0=Ended(137) two#0=Ended(137) app#0=Ended(137) wake=32
        "#]],
    );
}

#[test]
fn a_sidecar_that_failed_before_it_had_started_holds_the_others_still() {
    check(
        desired("one+? | app", RestartPolicy::Always),
        "0 address
         0 prepared one
         1 started one
         2 exited one 1
         3 prepared one
         4 started one
         5 probed one started",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing app#0=Waiting
            0 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting app#0=Waiting
            1 started one
                Active one#0=Running(since 1) app#0=Waiting
            2 exited one 1
                ! Prepare(0)
                Active one#1=Preparing app#0=Waiting
            3 prepared one
                ! Start { container: 0, restart: 1 }
                Active one#1=Starting app#0=Waiting
            4 started one
                Active one#1=Running(since 4) app#0=Waiting
            5 probed one started
                ! Prepare(1)
                Active one#1=Running(since 4) app#0=Preparing
        "#]],
    );
}

#[test]
fn a_sidecar_that_starts_again_holds_nobody_who_has_begun() {
    check(
        desired("one+? | app", RestartPolicy::OnFailure),
        "0 address
         0 prepared one
         1 started one
         1 probed one ready
         1 prepared app
         1 started app
         2 exited one 1
         2 prepared one
         2 started one
         3 exited app 1
         3 prepared app
         3 started app
         4 exited app 0",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active one#0=Preparing app#0=Waiting
            0 prepared one
                ! Start { container: 0, restart: 0 }
                Active one#0=Starting app#0=Waiting
            1 started one
                Active one#0=Running(since 1) app#0=Waiting
            1 probed one ready
                ! Prepare(1)
                Active one#0=Running(since 1) app#0=Preparing
            1 prepared app
                ! Start { container: 1, restart: 0 }
                Active one#0=Running(since 1) app#0=Starting
            1 started app
                Active one#0=Running(since 1) app#0=Running(since 1) ready
            2 exited one 1
                ! Prepare(0)
                Active one#1=Preparing app#0=Running(since 1)
            2 prepared one
                ! Start { container: 0, restart: 1 }
                Active one#1=Starting app#0=Running(since 1)
            2 started one
                Active one#1=Running(since 2) app#0=Running(since 1)
            3 exited app 1
                ! Prepare(1)
                Active one#1=Running(since 2) app#1=Preparing
            3 prepared app
                ! Start { container: 1, restart: 1 }
                Active one#1=Running(since 2) app#1=Starting
            3 started app
                Active one#1=Running(since 2) app#1=Running(since 3)
            4 exited app 0
                ! Stop { container: 0, restart: 1, grace: 30s, because: None }
                Stopping(Succeeded) one#1=Stopping app#1=Ended(0) wake=43
        "#]],
    );
}

#[test]
fn a_deleted_pod_is_ready_until_its_probe_or_itself_says_no() {
    check(
        desired("app?", RestartPolicy::Always),
        "0 address
         0 prepared app
         1 started app
         1 probed app ready
         2 delete 30
         3 probed app started
         4 probed app ready
         5 exited app 0",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1)
            1 probed app ready
                Active app#0=Running(since 1) ready
            2 delete 30
                ! Stop { container: 0, restart: 0, grace: 30s, because: None }
                Stopping(Deleted) app#0=Stopping wake=37 ready
            3 probed app started
                Stopping(Deleted) app#0=Stopping wake=37
            4 probed app ready
                Stopping(Deleted) app#0=Stopping wake=37 ready
            5 exited app 0
                ! Remove
                Removing(Deleted) app#0=Ended(0) wake=15
        "#]],
    );
}

#[test]
fn ephemeral_containers_come_and_decide_nothing() {
    check(
        desired("slow | app debug~", RestartPolicy::Always),
        "0 address
         0 prepared debug
         1 started debug
         2 exited debug 1
         3 prepared slow
         3 started slow
         4 exited slow 0
         4 prepared app
         5 started app",
        expect![[r#"
            0 address
                ! Prepare(2)
                ! Prepare(0)
                Active slow#0=Preparing app#0=Waiting debug#0=Preparing
            0 prepared debug
                ! Start { container: 2, restart: 0 }
                Active slow#0=Preparing app#0=Waiting debug#0=Starting
            1 started debug
                Active slow#0=Preparing app#0=Waiting debug#0=Running(since 1)
            2 exited debug 1
                Active slow#0=Preparing app#0=Waiting debug#0=Ended(1)
            3 prepared slow
                ! Start { container: 0, restart: 0 }
                Active slow#0=Starting app#0=Waiting debug#0=Ended(1)
            3 started slow
                Active slow#0=Running(since 3) app#0=Waiting debug#0=Ended(1)
            4 exited slow 0
                ! Prepare(1)
                Active slow#0=Ended(0) app#0=Preparing debug#0=Ended(1)
            4 prepared app
                ! Start { container: 1, restart: 0 }
                Active slow#0=Ended(0) app#0=Starting debug#0=Ended(1)
            5 started app
                Active slow#0=Ended(0) app#0=Running(since 5) debug#0=Ended(1) ready
        "#]],
    );
}

#[test]
fn a_refused_pod_never_begins() {
    check(
        desired("app", RestartPolicy::Always),
        "0 refuse
         0 removed
         9 delete 0",
        expect![[r#"
            0 refuse
                ! Remove
                Removing(Refused) app#0=Waiting wake=10
            0 removed
                ! Unmount
                Finished(Refused) app#0=Waiting
            9 delete 0
                ! Unmount
                ! Delete
                Deleting app#0=Waiting
        "#]],
    );
}

#[test]
fn an_evicted_pod_ends_and_stays() {
    check(
        desired("app", RestartPolicy::Always),
        "0 address
         0 prepared app
         1 started app
         2 evict
         3 exited app 143
         3 removed
         9 delete 0",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting
            1 started app
                Active app#0=Running(since 1) ready
            2 evict
                ! Stop { container: 0, restart: 0, grace: 1s, because: None }
                Stopping(Evicted) app#0=Stopping wake=8
            3 exited app 143
                ! Remove
                Removing(Evicted) app#0=Ended(143) wake=13
            3 removed
                ! Unmount
                Finished(Evicted) app#0=Ended(143)
            9 delete 0
                ! Unmount
                ! Delete
                Deleting app#0=Ended(143)
        "#]],
    );
}

#[test]
fn the_active_deadline_ends_a_pod() {
    let mut desired = desired("app", RestartPolicy::Always);
    let spec = Arc::make_mut(&mut desired.spec);
    spec.active_deadline = Some(Duration::from_secs(5));
    check(
        desired,
        "0 address
         0 prepared app
         1 started app
         4 step
         5 step
         6 exited app 143
         6 removed
         60 step",
        expect![[r#"
            0 address
                ! Prepare(0)
                Active app#0=Preparing wake=5
            0 prepared app
                ! Start { container: 0, restart: 0 }
                Active app#0=Starting wake=5
            1 started app
                Active app#0=Running(since 1) wake=5 ready
            4 step
                Active app#0=Running(since 1) wake=5 ready
            5 step
                ! Stop { container: 0, restart: 0, grace: 30s, because: None }
                Stopping(Deadline) app#0=Stopping wake=40
            6 exited app 143
                ! Remove
                Removing(Deadline) app#0=Ended(143) wake=16
            6 removed
                ! Unmount
                Finished(Deadline) app#0=Ended(143)
            60 step
                Finished(Deadline) app#0=Ended(143)
        "#]],
    );
}
