//! A requester that says everything twice: its second TASK of a session is refused while the first one runs.

use std::sync::Arc;
use std::time::Duration;

use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, CloseCode, ServerMessage, SessionId,
    Status,
};
use link::connection::now;
use link::{Connection, Event, Outbox, OutboxLimits};

use crate::parties::{WATCH, World, plan};
use crate::workload::DEVICES;

pub(crate) const STUTTERER: &str = "g4";

/// How long it waits for the next word: longer than any of its tasks may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Submits two tasks, each twice, and listens until nothing more comes or the connection is over.
pub(crate) async fn stutter(world: World, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let connect = world.network.connector(STUTTERER, &world.site);
    let Ok(socket) = connect().await else { return };
    let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
    let mut connection = Connection::<ServerMessage>::new(socket, outbox, WATCH, None);
    connection.reply(&message(ClientMessageType::Register));
    if let Event::Closed(closed) = hear(&mut connection).await {
        return connection.close(closed.code, &closed.reason).await;
    }
    for n in 0..2 {
        let session = SessionId::new(&format!("stutter-{seed}-{n}")).unwrap();
        let task = ClientMessage {
            status: Status::Continue,
            session_id: Some(session),
            target_id: ClientId::new(DEVICES[chance.usize(..DEVICES.len())]).ok(),
            request: Some(plan(&mut chance)),
            ..message(ClientMessageType::Task)
        };
        connection.reply(&task);
        // Should the first one be over by then, this is another task.
        connection.reply(&ClientMessage { request: Some(plan(&mut chance)), ..task });
    }
    loop {
        match hear(&mut connection).await {
            Event::Message(_) => {}
            Event::Closed(closed) => return connection.close(closed.code, &closed.reason).await,
            _ => return connection.close(CloseCode::NORMAL, "").await,
        }
    }
}

async fn hear(connection: &mut Connection<ServerMessage>) -> Event<ServerMessage> {
    connection.next_event(Some(now() + PATIENCE)).await
}

fn message(kind: ClientMessageType) -> ClientMessage {
    ClientMessage {
        client_id: ClientId::new(STUTTERER).ok(),
        ..ClientMessage::new(kind, ClientType::Constellation)
    }
}
