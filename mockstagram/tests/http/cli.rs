//! The command line: help, wrong usage, failures, how it stops.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;

use crate::server::{Server, mockstagram};

/// Runs to the end: exit code, standard output, standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = mockstagram().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_shows_flags_examples_and_exit_codes() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    let parts = [
        "--http",
        "127.0.0.1:3000",
        "MOCKSTAGRAM_HTTP",
        "--seed",
        "--error-rate",
        "--latency-sigma",
        "Examples:",
        "Exit codes:",
    ];
    for part in parts {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_named() {
    let cases: [(&[&str], &str); 9] = [
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--http", "3000"], "--http"),
        (&["--http", "127.0.0.1:99999"], "--http"),
        (&["--seed", "x"], "--seed"),
        (&["--error-rate", "1.5"], "1.5 is not a number from 0 to 1"),
        (&["--error-rate", "0.6", "--reset-rate", "0.6"], "add up to 1.2"),
        (&["--latency", "slow"], "log-normal"),
        (&["--influencers", "0"], "--influencers"),
        (&["--threads", "0"], "--threads"),
    ];
    for (args, named) in cases {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
    }
}

#[test]
fn a_port_in_use_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, stderr) = run(&["--http", &address]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("in use") && stderr.contains("--http"), "{stderr}");
}

#[test]
fn signals_stop_it_cleanly_whatever_is_under_way() {
    for signal in ["-INT", "-TERM"] {
        let server = Server::start(&["--timeout-rate", "1"]);
        let address = server.address().to_owned();
        let mut hanging = TcpStream::connect(&address).unwrap();
        hanging.write_all(b"GET /api/v1/influencers/1000000 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let (status, stdout, stderr) = server.stop(signal);
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{signal}: {stderr}");
        assert_eq!(stdout, "", "more than one line on standard output");
        let lines: Vec<_> = stderr.lines().collect();
        let [first, last] = lines[..] else { panic!("{stderr}") };
        assert!(first.contains(&address) && first.contains("1000000 to 1999999") && first.contains("seed"), "{first}");
        assert_eq!(last, "mockstagram: stopped");
        assert!(TcpStream::connect(&address).is_err());
    }
}

#[tokio::test]
async fn flags_come_by_environment_too_and_a_flag_wins() {
    let mut command = mockstagram();
    command.env("MOCKSTAGRAM_HTTP", "127.0.0.1:0").env("MOCKSTAGRAM_SEED", "1").env("MOCKSTAGRAM_ERROR_RATE", "0.5");
    let server = Server::spawn(command.args(["--seed", "2"]));
    assert_eq!(server.get("/admin/sequence?pk=1000000&n=1").await.1["seed"], 2);
    assert_eq!(server.get("/admin/settings").await.1["error_rate"], 0.5);
}
