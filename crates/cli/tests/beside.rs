//! Commands beside each other on one device, and how long one may take, as a user of `exec` meets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{Home, Server, long_sleep, until};

#[tokio::test]
async fn two_commands_on_one_device_run_beside_each_other() {
    let (server, home) = (Server::start().await, Home::new());
    let _device = server.device("box", &["--exec", "shell"]).await;
    let [begun, go] = ["begun", "go"].map(|name| home.path().join(name).display().to_string());
    let first = format!("touch {begun}; until test -e {go}; do sleep 0.05; done; echo first");
    let first = server.start_command(&["exec", "--on", "box", "--", &first]);
    until("the first command", || fs::exists(&begun).unwrap()).await;
    // The first one ends only once the second one has run.
    let second = server.run(&["exec", "--on", "box", "--", &format!("touch {go}")]).await;
    assert_eq!(second.code, 0, "{second:?}");
    let first = first.done().await;
    assert_eq!((first.code, first.stdout.as_str()), (0, "first\n"), "{first:?}");
}

#[tokio::test]
async fn an_owner_who_wants_one_command_at_a_time_gets_that() {
    let (server, home) = (Server::start().await, Home::new());
    let _device = server.device("box", &["--exec", "shell", "--parallel-commands", "1"]).await;
    let place = home.path().join("place").display().to_string();
    // Who finds the place taken fails.
    let alone = format!("mkdir {place} && sleep 0.2 && rmdir {place}");
    let both = [(); 2].map(|()| server.start_command(&["exec", "--on", "box", "--", &alone]));
    for one in both {
        let done = one.done().await;
        assert_eq!(done.code, 0, "{done:?}");
    }
}

#[tokio::test]
async fn a_limit_that_somebody_has_set_stands_and_is_named() {
    let whose = |setting: &'static str| match setting {
        "max_command_time" => "this device's max_command_time",
        "command_timeout" => "the server's command_timeout",
        "max_command_timeout" => "the server's max_command_timeout",
        _ => "the server's session_timeout",
    };
    for setting in ["max_command_time", "command_timeout", "max_command_timeout", "session_timeout"]
    {
        let flag = format!("--{}", setting.replace('_', "-"));
        let limit = [flag.as_str(), "0.5"];
        let is_devices = setting == "max_command_time";
        let (of_server, of_device) =
            if is_devices { (&[][..], &limit[..]) } else { (&limit[..], &[][..]) };
        let server = Server::start_with(of_server).await;
        let shell = [&["--exec", "shell"], of_device].concat();
        let _device = server.device("box", &shell).await;
        let done = server.run(&["exec", "--on", "box", "--", &long_sleep()]).await;
        assert_eq!(done.code, 124, "{setting}: {done:?}");
        assert!(done.stderr.contains(whose(setting)), "{setting}: {done:?}");
    }
}

#[tokio::test]
async fn what_is_followed_asks_for_no_limit_and_what_is_left_alone_has_the_usual_ones() {
    let server = Server::start().await;
    let mut device = server.raw_device("box").await;
    let followed = server.start_command(&["exec", "--on", "box", "--", "uname"]);
    let command = device.expect("command").await;
    let timeout = command["actions"][0]["parameters"]["timeout"].as_u64();
    assert!(timeout.is_some_and(|seconds| seconds > 30 * 24 * 3600), "{command}");
    device.answer_well(&command).await;
    followed.done().await;
    let left = server.run(&["exec", "--detach", "--on", "box", "--", "uname"]).await;
    assert_eq!(left.code, 0, "{left:?}");
    let command = loop {
        let message = device.next().await.unwrap();
        if message["type"] == "command" {
            break message;
        }
    };
    assert!(command["actions"][0]["parameters"]["timeout"].is_null(), "{command}");
}

#[tokio::test]
#[ignore = "takes more than a minute; by hand"]
async fn a_command_of_65_seconds_is_followed_to_its_end() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let done = server.run(&["exec", "--on", "box", "--", "sleep 65; echo at last"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "at last\n"), "{done:?}");
}
