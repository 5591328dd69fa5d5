use super::*;

const WINDOW: u32 = 4096;

fn flow(output: bool, input: bool) -> Flow {
    let flow =
        Flow::of(Streams { output, input, spool: false, window: Some(WINDOW) }, None).unwrap();
    flow.begin();
    flow
}

/// What is said next: of each chunk where it begins, its bytes, and whether it is the last.
fn said(flow: &Flow) -> Vec<(Channel, u64, Vec<u8>, bool)> {
    match flow.next() {
        Some(Upstream::Chunks(chunks)) => chunks
            .into_iter()
            .map(|own| (own.stream, own.offset, own.data.to_bytes().unwrap().to_vec(), own.end))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn taken(flow: &Flow, stdout: u64, again: bool) {
    let stdout = Some(stdout);
    flow.handle(&Downstream::Taken(OutputTaken { step: 1, stdout, stderr: None, again }));
}

fn room(flow: &Flow) -> Option<usize> {
    futures_util::FutureExt::now_or_never(flow.room(Channel::Stdout))
}

#[test]
fn nobody_wants_streams_usually() {
    assert!(Flow::of(Streams::default(), None).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_full_window_takes_nothing_until_some_of_it_is_taken() {
    let flow = flow(true, false);
    assert_eq!(room(&flow), Some(WINDOW as usize));
    flow.push(Channel::Stdout, &[b'x'; 4000]);
    assert_eq!(said(&flow).len(), 1);
    flow.push(Channel::Stdout, &[b'y'; 96]);
    assert_eq!((room(&flow), flow.is_full(Channel::Stdout)), (None, true));
    assert!(!flow.is_full(Channel::Stderr), "each stream has its own");
    assert_eq!(said(&flow).len(), 1);
    taken(&flow, 4000, false);
    assert_eq!(room(&flow), Some(4000));
    taken(&flow, 1 << 40, false);
    assert_eq!(room(&flow), Some(4000), "what was not written cannot be taken");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_taken_is_said_again_on_another_connection_and_when_asked_for() {
    let flow = flow(true, false);
    flow.push(Channel::Stdout, b"one ");
    let mut first = said(&flow);
    flow.push(Channel::Stdout, b"two");
    first.extend(said(&flow));
    assert_eq!(flow.next(), None);
    flow.rewind();
    assert_eq!(said(&flow), first);
    taken(&flow, 4, true);
    assert_eq!(said(&flow), first[1..]);
    // Not more than once a second, but then it is.
    taken(&flow, 4, true);
    assert_eq!(flow.next(), None);
    flow.news().await;
    flow.news().await;
    assert_eq!(said(&flow), first[1..]);
}

#[tokio::test(start_paused = true)]
async fn characters_stay_whole_and_the_end_has_what_is_left() {
    let flow = flow(true, false);
    for byte in "a€".bytes() {
        flow.push(Channel::Stdout, &[byte]);
    }
    flow.push(Channel::Stdout, b"\xe2");
    assert_eq!(said(&flow), [(Channel::Stdout, 0, "a€".into(), false)]);
    flow.push(Channel::Stdout, &[]);
    assert_eq!(said(&flow), [(Channel::Stdout, 4, b"\xe2".to_vec(), true)]);
    flow.push(Channel::Stdout, b"late");
    assert_eq!(flow.next(), None, "nothing follows an end");
}

#[tokio::test(start_paused = true)]
async fn many_small_writes_are_one_piece_until_it_was_said() {
    let flow = flow(true, true);
    assert_eq!(told(&flow), Some((0, false)));
    for byte in 0..100 {
        flow.push(Channel::Stdout, b"x");
        input(&flow, byte, b"y", false);
    }
    assert_eq!(told(&flow), Some((0, false)));
    assert_eq!(said(&flow), [(Channel::Stdout, 0, vec![b'x'; 100], false)]);
    flow.push(Channel::Stdout, b"z");
    flow.rewind();
    assert_eq!(told(&flow), Some((0, false)));
    let lengths: Vec<_> = said(&flow).into_iter().map(|(_, _, bytes, _)| bytes.len()).collect();
    assert_eq!(lengths, [100, 1], "a repeat is the same chunk");
    assert_eq!(flow.next_input().await, Some(vec![b'y'; 100]));
}

#[tokio::test(start_paused = true)]
async fn before_a_little_output_more_is_gathered_but_much_and_the_end_go_at_once() {
    let flow = flow(true, true);
    let waits = async || {
        let begun = Instant::now();
        flow.gather().await;
        begun.elapsed()
    };
    assert_eq!(told(&flow), Some((0, false)));
    assert_eq!(waits().await, Duration::ZERO, "there is nothing");
    flow.push(Channel::Stdout, b"little");
    assert_eq!(waits().await, GATHER_TIME);
    flow.push(Channel::Stderr, &[b'x'; WINDOW as usize / 2]);
    assert_eq!(waits().await, Duration::ZERO);
    assert_eq!(said(&flow).len(), 2);
    input(&flow, 0, b"in", false);
    assert_eq!(waits().await, Duration::ZERO, "who sends is told");
    assert_eq!(told(&flow), Some((0, false)));
    flow.push(Channel::Stderr, &[b'x'; WINDOW as usize / 4]);
    assert_eq!(waits().await, GATHER_TIME);
    flow.push(Channel::Stderr, &[b'x'; WINDOW as usize / 4]);
    assert_eq!(said(&flow).len(), 1);
    flow.push(Channel::Stdout, b"little");
    assert_eq!(waits().await, Duration::ZERO, "of the other stream no more can come");
    assert_eq!(said(&flow).len(), 1);
    flow.push(Channel::Stdout, &[]);
    assert_eq!(waits().await, Duration::ZERO);
}

/// Says what there is for ever, to somebody who takes it all.
async fn pump(flow: &Flow, takes: bool) -> Infallible {
    loop {
        match flow.next() {
            Some(Upstream::Chunks(chunks)) if takes => {
                for chunk in chunks {
                    let end = chunk.offset + chunk.data.len().unwrap();
                    let (mut stdout, mut stderr) = (None, None);
                    match chunk.stream {
                        Channel::Stdout => stdout = Some(end),
                        Channel::Stderr => stderr = Some(end),
                    }
                    let taken = OutputTaken { step: 1, stdout, stderr, again: false };
                    flow.handle(&Downstream::Taken(taken));
                }
            }
            Some(_) => {}
            None => flow.news().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_is_over_once_all_is_taken_or_five_seconds_after_a_stop() {
    let stop = CancellationToken::new();
    let work = |flow: &Flow| {
        let flow = flow.clone();
        async move {
            flow.push(Channel::Stdout, b"x");
            Channel::ALL.into_iter().for_each(|channel| flow.push(channel, &[]));
        }
    };
    let taking = flow(true, false);
    taking.carry(work(&taking), &stop, pump(&taking, true)).await;
    let silent = flow(true, false);
    let begun = Instant::now();
    let stopped = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        stop.cancel();
    };
    tokio::join!(silent.carry(work(&silent), &stop, pump(&silent, false)), stopped);
    assert_eq!(begun.elapsed(), Duration::from_secs(105));
    // A tool that writes nothing of the kind is waited for no longer than it takes.
    let idle = Flow::of(Streams { output: true, ..Streams::default() }, None).unwrap();
    idle.carry(async {}, &stop, pump(&idle, false)).await;
}

fn input(flow: &Flow, offset: u64, bytes: &[u8], end: bool) {
    let data = Data::of(bytes);
    flow.handle(&Downstream::Input(Input { step: 1, n: 0, offset, data, end }));
}

/// How much of the input the requester is told was taken.
fn told(flow: &Flow) -> Option<(u64, bool)> {
    match flow.next() {
        Some(Upstream::Taken(taken)) => Some((taken.stdin, taken.closed)),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn input_comes_in_order_once_and_within_the_window() {
    let flow = flow(true, true);
    assert_eq!(told(&flow), Some((0, false)), "it may begin");
    input(&flow, 3, b"gap", false);
    input(&flow, 0, b"abc", false);
    input(&flow, 0, b"abc", false);
    input(&flow, 3, &[b'x'; WINDOW as usize], false);
    assert_eq!(told(&flow), Some((0, false)));
    assert_eq!(flow.next_input().await.as_deref(), Some(b"abc".as_slice()));
    flow.input_written(3);
    assert_eq!(told(&flow), Some((3, false)));
    input(&flow, 3, &[b'x'; WINDOW as usize], true);
    assert_eq!(flow.next_input().await.map(|bytes| bytes.len()), Some(WINDOW as usize));
    assert_eq!(flow.next_input().await, None);
    flow.rewind();
    assert_eq!(told(&flow), Some((3, false)));
    flow.close_input();
    assert_eq!(told(&flow), Some((3, true)));
    assert_eq!(told(&flow), None);
}
