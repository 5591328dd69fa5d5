//! The ways to a server: through an HTTP proxy, over IPv6.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::sync::{Arc, Mutex};

use common::{Home, Process, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A name that only the proxy knows.
const NAME: &str = "flightdeck.test";

/// What the proxy wants to be shown: `ada:s3crat`.
const AUTHORIZATION: &str = "Proxy-Authorization: Basic YWRhOnMzY3JhdA==";

/// An HTTP proxy that connects everybody who shows the password to this machine's ports.
struct Proxy {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, seen.clone()));
            }
        });
        Self { port, heads }
    }

    fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// The first lines of the requests.
    fn asked(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().map(|head| head.lines().next().unwrap().to_owned()).collect()
    }
}

async fn serve(mut client: TcpStream, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let text = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(text.clone());
    let shown = text.to_lowercase().contains(&AUTHORIZATION.to_lowercase());
    if !shown {
        let _hung_up = client.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").await;
        return;
    }
    let port = text.split(&format!("{NAME}:")).nth(1).unwrap();
    let port: u16 = port.split([' ', '/']).next().unwrap().parse().unwrap();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
        let _hung_up = client.write_all(b"HTTP/1.1 502 Nobody there\r\n\r\n").await;
        return;
    };
    match text.starts_with("CONNECT ") {
        true => client.write_all(b"HTTP/1.1 200 Go ahead\r\n\r\n").await.unwrap(),
        false => server.write_all(text.as_bytes()).await.unwrap(),
    }
    let _ended = copy_bidirectional(&mut client, &mut server).await;
}

/// A command that knows the server by its name alone, and the way there.
fn command(server: &Server, home: &Home, url: &str, proxy: &str, args: &[&str]) -> Process {
    let mut command = home.command(args);
    command.env("FLIGHTDECK_SERVER", url).env("FLIGHTDECK_TOKEN", server.key());
    Process::start(command.env("http_proxy", proxy).env("HTTPS_PROXY", proxy))
}

#[tokio::test]
async fn everything_goes_through_the_proxy_to_a_server_that_only_it_can_reach() {
    let certificate =
        rcgen::generate_simple_self_signed([NAME, "127.0.0.1"].map(str::to_owned)).unwrap();
    let home = Arc::new(Home::new());
    let file = |name: &str, text: String| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("cert.pem", certificate.cert.pem());
    let key = file("key.pem", certificate.signing_key.serialize_pem());
    for is_tls in [false, true] {
        let proxy = Proxy::start().await;
        let args = match is_tls {
            true => vec!["--tls-cert", &ca, "--tls-key", &key],
            false => vec!["--allowed-hosts", NAME],
        };
        let server = start(&args).await;
        let scheme = if is_tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{NAME}:{}", server.port);
        let way = proxy.url("ada:s3crat@");
        let run =
            |args: &[&str]| command(&server, &home, &url, &way, &[args, &["--ca", &ca]].concat());
        let mut device = run(&["device", "--id", "box", "--exec", "shell"]);
        device.says("connected to").await;
        let listed = run(&["devices"]).done().await;
        assert!(listed.code == 0 && listed.stdout.contains("box"), "{listed:?}");
        let args = ["exec", "--on", "box", "--ca", &ca, "--", "echo over the proxy"];
        let done = command(&server, &home, &url, &way, &args).done().await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "over the proxy\n"), "{done:?}");

        let connect = format!("CONNECT {NAME}:{} HTTP/1.1", server.port);
        assert_eq!(proxy.asked()[0], connect);
        assert!(proxy.asked().len() >= 3, "{:?}", proxy.asked());
        assert!(!device.stderr().contains("s3crat"), "{}", device.stderr());
    }
}

/// A server of which nobody but its proxy knows where it is.
async fn start(args: &[&str]) -> Server {
    Server::start_in(Arc::new(Home::new()), 0, args).await
}

#[tokio::test]
async fn what_is_wrong_with_the_proxy_is_said_and_the_password_is_not() {
    let server = Server::start_with(&["--allowed-hosts", NAME]).await;
    let (proxy, home) = (Proxy::start().await, Home::new());
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let nowhere = format!("http://ada:s3crat@127.0.0.1:{gone}");
    for (port, way, expected) in [
        (server.port, proxy.url("ada:wr0ng@"), "refuses the user and password"),
        (server.port, proxy.url(""), "wants a user and password"),
        (gone, proxy.url("ada:s3crat@"), "(HTTP 502)"),
        (server.port, nowhere, "does not answer"),
        (server.port, "socks5://ada:s3crat@127.0.0.1:1".to_owned(), "not by socks5://"),
    ] {
        let url = format!("ws://{NAME}:{port}");
        let args = ["device", "--id", "d", "--max-retries", "0", "--log", "trace"];
        let done = command(&server, &home, &url, &way, &args).done().await;
        assert!(done.code != 0 && done.stderr.contains(expected), "{expected}: {done:?}");
        for secret in ["s3crat", "wr0ng", "YWRhOnMzY3JhdA"] {
            assert!(!done.stderr.contains(secret), "{done:?}");
        }
    }
}

#[tokio::test]
async fn a_server_on_this_machine_needs_no_proxy() {
    let server = Server::start().await;
    let (proxy, home) = (Proxy::start().await, Home::new());
    let mut device =
        command(&server, &home, &server.url(), &proxy.url(""), &["device", "--id", "d"]);
    device.says("connected to").await;
    let listed = command(&server, &home, &server.url(), &proxy.url(""), &["devices"]).done().await;
    assert!(listed.stdout.contains('d'), "{listed:?}");
    assert_eq!(proxy.asked(), [""; 0]);
}

#[tokio::test]
async fn a_server_can_be_reached_over_ipv6() {
    let home = Home::new();
    let state = common::process::state_dir(&home);
    let mut server = home.start(&["serve", "--host", "::1", "--port", "0", "--state-dir", &state]);
    server.says("ws://[::1]:").await;
    let text = server.stderr();
    let port = text.split("ws://[::1]:").nth(1).unwrap().split('/').next().unwrap();
    for url in [format!("ws://[::1]:{port}"), format!("[::1]:{port}")] {
        let args = ["device", "--id", &url, "--server", &url, "--state-dir", &state];
        let mut device = home.start(&args);
        device.says("connected to ws://[::1]:").await;
        let listed = home.start(&["devices", "--server", &url, "--state-dir", &state]).done().await;
        assert!(listed.stdout.contains(&url), "{listed:?}");
    }
}
