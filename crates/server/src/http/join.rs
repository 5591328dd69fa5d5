//! How machines join: a challenge for each upgrade of a device that has a key pair, and what join tokens open.

use std::io;
use std::time::{Duration, Instant};

use aip::ClientId;
use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::{IntoResponse, Json};
use jiff::{SignedDuration, Timestamp};
use link::proof::{Challenge, NONCE_HEADER, STORE_HEADER, is_public_key};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::access::{self, Denied, Holder};
use super::answer::Id;
use super::body;
use super::problem::Problem;
use crate::audit::{Entry, Event};
use crate::auth::{JoinRefused, Joining, KeyBook, KeyRecord, NewJoinToken, Pattern, Role, bearer};
use crate::front::Caller;
use crate::server::Server;

/// The longest body of a request to join, in bytes: an id may have 256 characters.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// How long a device may take to join again once it may.
const REJOIN_TIME: SignedDuration = SignedDuration::from_hours(1);

/// The longest part of a device's id in the name of its token, in characters.
const MAX_ID_IN_NAME: usize = 40;

/// Longest wait for the file of the keys, which a command may hold.
const LONGEST_CHANGE: Duration = Duration::from_secs(10);

/// A device that wants to join.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMember {
    /// The id that it will register with.
    #[schema(value_type = String, example = "lab-1")]
    id: ClientId,
    /// The public key that it made (Ed25519, 32 bytes as base64 with `-` and `_` and no `=`).
    public_key: String,
}

/// A device that has joined.
#[derive(Serialize, ToSchema)]
pub(super) struct Member {
    /// What its key pair is called here.
    key: String,
    /// The label of its key pair.
    name: String,
    /// The id of the server's store.
    store: String,
}

/// An operator that has logged in.
#[derive(Serialize, ToSchema)]
pub(super) struct NewOperator {
    /// Its key, which is not shown again.
    key: String,
    /// The label of the key.
    name: String,
}

/// What lets a device join again.
#[derive(Serialize, ToSchema)]
pub(super) struct Rejoin {
    /// A join token for this device alone. It is not shown again.
    token: String,
    /// Until when it opens.
    expires_at: Timestamp,
    /// The SHA-256 of the public key (SPKI) of the TLS certificate that clients of this server see.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hash: Option<String>,
}

/// Why nobody joined.
pub(super) enum NotJoined {
    Denied(Denied),
    Problem(Problem),
}

impl From<Problem> for NotJoined {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for NotJoined {
    fn into_response(self) -> Response<Body> {
        match self {
            Self::Denied(denied) => denied.into_response(),
            Self::Problem(problem) => problem.into_response(),
        }
    }
}

/// Get a challenge for an upgrade
///
/// For devices that have joined. It is answered once, within 30 s, in the `Authorization` of `GET /ws`.
#[utoipa::path(
    get, path = "/challenge", tag = "join", operation_id = "challenge", security(()),
    responses(
        (status = NO_CONTENT, description = "A challenge", headers(
            ("flightdeck-nonce" = String, description = "32 bytes, as base64 with `-` and `_` and no `=`"),
            ("flightdeck-store" = String, description = "The id of the server's store")
        )),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`no_challenge`")
    )
)]
pub(super) async fn challenge(State(server): State<Server>) -> Result<Response<Body>, Problem> {
    let none = |why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_challenge", why);
    let nonce = server.challenges().issue(Instant::now());
    let nonce = nonce.ok_or_else(|| none("The server has no random bytes"))?;
    let challenge = Challenge { nonce, store: server.store_id().to_owned() };
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| none(&error.to_string()));
    let (nonce, store) = (value(&challenge.nonce_text())?, value(&challenge.store)?);
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(NONCE_HEADER), nonce);
    headers.insert(HeaderName::from_static(STORE_HEADER), store);
    Ok(response)
}

/// Join with a device's key pair
///
/// The join token is shown as `Authorization: Bearer`. From then on the key pair opens for this id, and for no other.
#[utoipa::path(
    post, path = "/join", tag = "join", operation_id = "join", security(("bearer" = [])),
    request_body = NewMember,
    responses(
        (status = CREATED, body = Member, description = "It has joined"),
        (status = BAD_REQUEST, body = Problem, description = "`body_unreadable`"),
        (status = UNAUTHORIZED, body = Problem, description = "`invalid_join_token`"),
        (status = FORBIDDEN, body = Problem, description =
            "`join_refused`: the token has expired, is used up or is for others, or the id is not new"),
        (status = REQUEST_TIMEOUT, body = Problem, description = "`body_too_slow`"),
        (status = PAYLOAD_TOO_LARGE, body = Problem, description = "`body_too_large`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "`body_invalid`"),
        (status = TOO_MANY_REQUESTS, body = Problem, description = "`too_many_wrong_keys`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`keys_not_kept`")
    )
)]
pub(super) async fn join(
    State(server): State<Server>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Member>), NotJoined> {
    let caller = caller.map(|Extension(caller)| caller);
    let token = bearer(&headers).ok_or_else(|| unknown(&server, caller.as_ref()))?;
    let NewMember { id, public_key } = body::small(body, server.config(), MAX_BODY_BYTES).await?;
    if !is_public_key(&public_key) {
        let text = "The body is not valid: public_key: 32 bytes as base64 with - and _ and no =";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "body_invalid", text).into());
    }
    let member = Some((&id, public_key.as_str()));
    let opens = may_join(&server, &token, Role::Device, member).await;
    settle(&server, caller.as_ref(), Some(&id), opens)?;
    let (device, address) = (id.clone(), caller.as_ref().map(|caller| caller.address.ip()));
    let own = server.clone();
    let joined = change_book(&server, move |book| {
        let is_present = own.hub().is_known(&device);
        let joining = Joining {
            token: &token,
            device: &device,
            public_key: &public_key,
            address,
            is_present,
        };
        book.bind(&joining, Timestamp::now())
    });
    let joined = joined.await?;
    let record = settle(&server, caller.as_ref(), Some(&id), joined)?;
    record_join(&server, caller.as_ref(), Some(&id), &record);
    let store = server.store_id().to_owned();
    Ok((StatusCode::CREATED, Json(Member { key: record.id, name: record.name, store })))
}

/// Get an operator's key
///
/// The join token is shown as `Authorization: Bearer`.
#[utoipa::path(
    post, path = "/login", tag = "join", operation_id = "login", security(("bearer" = [])),
    responses(
        (status = CREATED, body = NewOperator, description = "The key"),
        (status = UNAUTHORIZED, body = Problem, description = "`invalid_join_token`"),
        (status = FORBIDDEN, body = Problem, description =
            "`join_refused`: the token has expired, is used up or is for others"),
        (status = TOO_MANY_REQUESTS, body = Problem, description = "`too_many_wrong_keys`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`keys_not_kept`")
    )
)]
pub(super) async fn login(
    State(server): State<Server>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<NewOperator>), NotJoined> {
    let caller = caller.map(|Extension(caller)| caller);
    let token = bearer(&headers).ok_or_else(|| unknown(&server, caller.as_ref()))?;
    let opens = may_join(&server, &token, Role::Operator, None).await;
    settle(&server, caller.as_ref(), None, opens)?;
    let address = caller.as_ref().map(|caller| caller.address.ip());
    let admitted =
        change_book(&server, move |book| book.admit_operator(&token, address, Timestamp::now()));
    let (record, key) = settle(&server, caller.as_ref(), None, admitted.await?)?;
    record_join(&server, caller.as_ref(), None, &record);
    let key = key.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(NewOperator { key, name: record.name })))
}

/// Let a device join again
///
/// For operators. The answer has a join token that opens for this id alone, whatever has it now; the key pair that was
/// bound to it is replaced once it is used.
#[utoipa::path(
    post, path = "/devices/{id}/rejoin", tag = "join", operation_id = "rejoin_device",
    params(("id" = String, Path, description = "The id of the device", example = "lab-1")),
    responses(
        (status = CREATED, body = Rejoin, description = "The token"),
        (status = BAD_REQUEST, body = Problem, description = "`bad_id`"),
        (status = CONFLICT, body = Problem, description = "`too_many_join_tokens`: revoke some"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`keys_not_kept`")
    )
)]
pub(super) async fn rejoin(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    Id(id): Id,
) -> Result<(StatusCode, Json<Rejoin>), Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, "bad_id", text);
    let device = ClientId::new(&id).map_err(|error| bad(error.to_string()))?;
    let client: Pattern = id.parse().map_err(bad)?;
    if !holder.may_reach(&device) {
        return Err(Problem::not_allowed());
    }
    if !client.is_exact() {
        return Err(bad("An id with * in it cannot be bound to a key pair".to_owned()));
    }
    let expires_at = Timestamp::now() + REJOIN_TIME;
    let start: String = id.chars().take(MAX_ID_IN_NAME).collect();
    let number = Uuid::new_v4().as_fields().0;
    let name = format!("rejoin-{start}-{number:08x}");
    let new = NewJoinToken {
        name: name.clone(),
        role: Role::Device,
        client: Some(client),
        uses: 1,
        expires_at,
        replaces: true,
    };
    let made = change_book(&server, move |book| {
        // The last one that was made for it counts.
        book.join_tokens.retain(|token| !(token.replaces && token.client == new.client));
        book.add_token(new)
    });
    let full = |text| Problem::new(StatusCode::CONFLICT, "too_many_join_tokens", text);
    let token: SecretString = made.await?.map_err(full)?;
    let caller = caller.map(|Extension(caller)| caller);
    server.audit().record(Entry {
        key: Some(holder.name()),
        address: caller.as_ref().map(|caller| caller.address),
        device: Some(device.as_str()),
        ..Entry::new(Event::JoinTokenCreated)
    });
    tracing::info!(key = holder.name(), device = %device, "a device may join again");
    let pin = server.config().proxy_pin.or_else(|| caller.and_then(|caller| caller.pin));
    let key_hash = pin.map(|pin| pin.to_string());
    let token = token.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(Rejoin { token, expires_at, key_hash })))
}

/// The holder of the key pair that signed a request's challenge; `None` when the request shows no signature.
pub(super) fn prove(server: &Server, request: &Request) -> Option<Result<Holder, Denied>> {
    let caller = request.extensions().get::<Caller>();
    let pin = caller.and_then(|caller| caller.pin);
    let proved = server.prove(request.headers(), pin)?;
    Some(match proved {
        Ok(holder) => {
            if let Some(caller) = caller {
                caller.has_valid_key();
            }
            Ok(holder)
        }
        Err(why) => {
            Err(match access::wrong_key(server, caller, Some("/ws"), Some(&why.to_string())) {
                Denied::WrongKey => Denied::NotProved(why.to_string()),
                too_many => too_many,
            })
        }
    })
}

/// Whether a join token opens, before the disk is asked: a look for new ones is taken if it is not known.
async fn may_join(
    server: &Server,
    token: &SecretString,
    role: Role,
    member: Option<(&ClientId, &str)>,
) -> Result<(), JoinRefused> {
    match server.keyring().may_join(token, role, member) {
        Err(JoinRefused::Unknown) => {
            server.look_for_keys().await;
            server.keyring().may_join(token, role, member)
        }
        known => known,
    }
}

/// Has the book changed, and puts its keys into force. A change that is refused is not kept.
async fn change_book<T: Send + 'static, E: Send + 'static>(
    server: &Server,
    change: impl FnOnce(&mut KeyBook) -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, Problem> {
    let kept = async {
        // Whoever is next must not put older keys into force. It is given back by who changes them, so that no more than
        // one waits for a disk that hangs, or for a command that holds the file.
        let turn = server.book_turn().await;
        let own = server.clone();
        let changing = tokio::task::spawn_blocking(move || {
            let (_turn, mut change, mut outcome) = (turn, Some(change), None);
            let Some(store) = own.key_store() else {
                return Err(io::Error::other("this server keeps no keys"));
            };
            let book = store.change(&mut |book| {
                outcome = change.take().map(|change| change(book));
                matches!(outcome, Some(Ok(_)))
            });
            book?.into_iter().for_each(|book| own.set_book(book));
            outcome.ok_or_else(|| io::Error::other("the keys were not read"))
        });
        changing.await.map_err(io::Error::other)?
    };
    let kept = tokio::time::timeout(LONGEST_CHANGE, kept).await;
    let kept = kept.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    kept.map_err(|error| {
        // Whoever is out there need not know where they are kept.
        tracing::error!(%error, "the keys could not be changed");
        let text = "The server cannot keep the key now; its log says why";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "keys_not_kept", text)
    })
}

/// What became of a try to join; what is refused is written down, and what opens no more counts as a wrong key does.
fn settle<T>(
    server: &Server,
    caller: Option<&Caller>,
    device: Option<&ClientId>,
    joined: Result<T, JoinRefused>,
) -> Result<T, NotJoined> {
    let refused = match joined {
        Ok(joined) => {
            if let Some(caller) = caller {
                caller.has_valid_key();
            }
            return Ok(joined);
        }
        Err(JoinRefused::Unknown) => return Err(unknown(server, caller)),
        Err(refused) => refused,
    };
    let address = caller.map(|caller| caller.address);
    let text = refused.to_string();
    if matches!(refused, JoinRefused::Used(..) | JoinRefused::Expired(..))
        && let denied @ Denied::TooMany { .. } =
            access::wrong_key(server, caller, None, Some(&text))
    {
        return Err(NotJoined::Denied(denied));
    }
    tracing::info!(
        address = address.map(tracing::field::display),
        device = device.map(tracing::field::display),
        refused = text,
        "nobody joined"
    );
    server.audit().record(Entry {
        client: device.map(ClientId::as_str),
        address,
        reason: Some(&text),
        ..Entry::new(Event::Refused)
    });
    Err(Problem::new(StatusCode::FORBIDDEN, "join_refused", text).into())
}

/// Counts as a wrong key does.
fn unknown(server: &Server, caller: Option<&Caller>) -> NotJoined {
    let why = JoinRefused::Unknown.to_string();
    match access::wrong_key(server, caller, None, Some(&why)) {
        Denied::WrongKey => {
            Problem::new(StatusCode::UNAUTHORIZED, "invalid_join_token", why).into()
        }
        denied => NotJoined::Denied(denied),
    }
}

fn record_join(
    server: &Server,
    caller: Option<&Caller>,
    device: Option<&ClientId>,
    record: &KeyRecord,
) {
    let role = record.role.to_string();
    server.audit().record(Entry {
        client: device.map(ClientId::as_str),
        role: Some(&role),
        key: Some(&record.name),
        address: caller.map(|caller| caller.address),
        ..Entry::new(Event::Joined)
    });
    tracing::info!(client = device.map(tracing::field::display), key = record.name, role, "joined");
}
