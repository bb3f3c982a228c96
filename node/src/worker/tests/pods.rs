//! Containers: started, stopped, remembered.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::harness::*;
use crate::protocol::{ContainerPhase, ExitReason, Hello, ToAgent, ToWorker, VERSION};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_prints_and_its_exit_is_kept_for_the_next_agent() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&printing("hello\nand more", 0));
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&module, 0))).await;
    let exit = agent.exited("a", 0).await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "{exit:?}");
    assert!(exit.started_at.is_some_and(|at| at <= exit.finished_at));
    // The exit is told after the log is complete.
    assert_eq!(fixture.log("a", "main", 0), "stdout F hello\nstdout P and more\n");
    drop(agent);

    let mut agent = fixture.connect(&fixture.hello).await;
    let state = agent.state().await;
    assert_eq!(state.pods.len(), 1);
    let container = &state.pods[0].containers[0];
    assert_eq!(container.image_id, "test@sha256:00");
    assert_eq!(container.phase, ContainerPhase::Exited(exit.clone()));
    // The same start again is not run again, and a stop of it is answered with how it ended.
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&module, 0))).await;
    let container = "main".to_owned();
    let uid = "a".to_owned();
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 0 }).await;
    assert_eq!(agent.exited("a", 0).await, exit);
    // The next start is.
    let failing = fixture.module(&printing("again\n", 3));
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&failing, 1))).await;
    let exit = agent.exited("a", 1).await;
    assert_eq!((exit.code, exit.reason), (3, ExitReason::Error));
    assert_eq!(fixture.log("a", "main", 1), "stdout F again\n");
    agent.say(ToWorker::RemovePod { uid: "a".to_owned() }).await;
    agent.hear_until(|message| matches!(message, ToAgent::PodRemoved { .. }).then_some(())).await;
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_never_ends_is_ended() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&spinning());
    for uid in ["stopped", "removed", "left"] {
        agent.say(pod(&fixture, uid, "10.0.0.1", command(&module, 0))).await;
        agent.started(uid).await;
    }
    let container = "main".to_owned();
    let uid = "stopped".to_owned();
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 60_000 }).await;
    let exit = agent.exited("stopped", 0).await;
    assert_eq!((exit.code, exit.reason), (143, ExitReason::Stopped));
    agent.say(ToWorker::RemovePod { uid: "removed".to_owned() }).await;
    assert_eq!(agent.exited("removed", 0).await.reason, ExitReason::Stopped);
    let message = agent.hear().await;
    assert_eq!(message, Some(ToAgent::PodRemoved { uid: "removed".to_owned() }));
    // The third is still running when the worker is told to stop.
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let nothing = fixture.folder.0.join("nothing");
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&nothing, 0))).await;
    let exit = agent.exited("a", 0).await;
    assert_eq!((exit.code, exit.reason), (128, ExitReason::StartError));
    assert!(exit.message.contains("nothing"), "{}", exit.message);
    // A command is not a handler.
    let module = fixture.module(&printing("", 0));
    let mut wrong = handler(&module, 80);
    wrong.form = crate::protocol::Form::Module;
    agent.say(pod(&fixture, "b", "10.0.0.2", wrong)).await;
    let exit = agent.exited("b", 0).await;
    assert_eq!(exit.reason, ExitReason::StartError);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_own_agent_is_served() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let own = fixture.hello.clone();
    let strangers = [
        Hello { namespace: "bank".to_owned(), ..own.clone() },
        Hello { node: "node-2".to_owned(), ..own.clone() },
        Hello { protocol: VERSION + 1, ..own.clone() },
    ];
    for hello in strangers {
        assert_eq!(fixture.connect(&hello).await.hear().await, None);
    }
    // The agent that was there is still there; its successor replaces it.
    let uid = "x".to_owned();
    agent.say(ToWorker::RemovePod { uid: uid.clone() }).await;
    assert_eq!(agent.hear().await, Some(ToAgent::PodRemoved { uid }));
    let mut successor = fixture.connect(&own).await;
    successor.state().await;
    assert_eq!(agent.hear().await, None);
    fixture.stop(successor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_engine_finds_what_runs_and_ends_it() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&spinning());
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&module, 0))).await;
    agent.started("a").await;
    drop(agent);
    let hello = Hello { engine: "upgraded".to_owned(), ..fixture.hello.clone() };
    let mut agent = fixture.connect(&hello).await;
    let state = agent.state().await;
    assert_eq!(state.engine, fixture.hello.engine);
    let phase = &state.pods[0].containers[0].phase;
    assert!(matches!(phase, ContainerPhase::Running { .. }), "{phase:?}");
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 0 }).await;
    assert_eq!(agent.exited("a", 0).await.reason, ExitReason::Stopped);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_any_version_can_end_it_in_order() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&spinning());
    agent.say(pod(&fixture, "a", "10.0.0.1", command(&module, 0))).await;
    agent.started("a").await;
    let mut stranger = UnixStream::connect(fixture.socket()).await.expect("connect");
    // These bytes are what all versions have in common.
    let stop = br#"{"stop":{"grace_ms":60000}}"#;
    stranger.write_all(&[&[0, 0, 0, 27], &stop[..]].concat()).await.expect("said");
    let mut said = Vec::new();
    stranger.read_to_end(&mut said).await.expect("open until the worker is gone");
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("containerExited"), "{said}");
    fixture.worker.await.expect("no panic").expect("no error");
}
