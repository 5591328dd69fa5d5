//! A TCP connection to a host by whichever of its addresses answers first.
//!
//! It must not know what is spoken over it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use url::Host;

/// How long an address may stay silent before the next one is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Connects to a host. Its name is resolved anew each time, so a host that moved is found again.
///
/// # Errors
/// When the name has no address, or none of them answers: what the last one to fail said.
pub(crate) async fn connect(host: &Host<String>, port: u16) -> io::Result<TcpStream> {
    let addresses = match host {
        Host::Domain(name) => {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), port)).await?.collect();
            in_turns(found)
        }
        Host::Ipv4(address) => vec![(IpAddr::V4(*address), port).into()],
        Host::Ipv6(address) => vec![(IpAddr::V6(*address), port).into()],
    };
    let stream = connect_to_first(addresses).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The addresses with the two families taking turns, so that a broken one costs only one head start.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first = addresses.first().map(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| Some(address.is_ipv6()) == is_first);
    let longer = first.len().max(second.len());
    let turns = (0..longer).flat_map(|n| [first.get(n).copied(), second.get(n).copied()]);
    turns.flatten().take(MAX_ADDRESSES).collect()
}

/// One address after the other, each with a head start; the first that answers wins.
async fn connect_to_first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = waiting.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        let ended = if waiting.len() == 0 {
            attempts.join_next().await
        } else {
            match tokio::time::timeout(HEAD_START, attempts.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => failed = error,
            Some(Err(error)) => failed = error.into(),
            None => return Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address that takes no connection and refuses none: its queue is full.
    async fn black_hole() -> (SocketAddr, Vec<JoinSet<()>>, TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut fillers = Vec::new();
        // A connection that gets no answer for a while has met a full queue.
        loop {
            match tokio::time::timeout(HEAD_START, TcpStream::connect(address)).await {
                Ok(filler) => {
                    let mut held = JoinSet::new();
                    held.spawn(async move {
                        let _held = filler.unwrap();
                        std::future::pending::<()>().await;
                    });
                    fillers.push(held);
                }
                Err(_) => return (address, fillers, listener),
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_keep_the_next_one_waiting() {
        let (hole, _fillers, _listener) = black_hole().await;
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = alive.local_addr().unwrap();
        for addresses in [vec![hole, address], vec![address, hole], vec![hole, hole, address]] {
            let stream = connect_to_first(addresses).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
        }
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next_one_at_once() {
        let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = alive.local_addr().unwrap();
        let stream = connect_to_first(vec![refuses, address]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        let error = connect_to_first(vec![refuses, refuses]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect_to_first(vec![]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_families_take_turns_and_there_is_a_bound() {
        let [a, b]: [SocketAddr; 2] =
            ["10.0.0.1:1", "10.0.0.2:1"].map(|text| text.parse().unwrap());
        let [c, d]: [SocketAddr; 2] = ["[::1]:1", "[::2]:1"].map(|text| text.parse().unwrap());
        assert_eq!(in_turns(vec![c, d, a, b]), [c, a, d, b]);
        assert_eq!(in_turns(vec![a, b, c]), [a, c, b]);
        assert_eq!(in_turns(vec![a; 100]).len(), MAX_ADDRESSES);
    }
}
