//! All keys that open, and who holds each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use aip::{ClientId, ClientType};
use axum::http::{HeaderMap, Uri};
use jiff::{SignedDuration, Timestamp};
use link::Pin;
use link::proof::Shown;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::record::id_of;
use super::{JoinRefused, JoinToken, KeyBook, KeyRecord, Role, shown_keys};
use crate::session::Task;

/// What the shared key is called, in lists and logs: generated, or given. No created key is.
pub(super) const SHARED_NAMES: [&str; 2] = ["local", "api-key (legacy)"];

/// The keys that a server opens to.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The key that everybody may share: all roles, no patterns.
    pub shared: SecretString,
    /// Whether the shared key was given, as UFO's is, rather than generated for this machine.
    pub is_legacy: bool,
    /// The created ones.
    pub created: Vec<KeyRecord>,
    /// What others join with.
    pub join_tokens: Vec<JoinToken>,
}

impl Keys {
    /// One generated key for everything.
    #[must_use]
    pub const fn local(shared: SecretString) -> Self {
        Self { shared, is_legacy: false, created: Vec::new(), join_tokens: Vec::new() }
    }
}

/// The holder of a key, and what the key lets it do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// A holder of the shared key: any role, any id, any device.
    Shared { name: &'static str },
    /// The holder of a created key.
    Own(KeyRecord),
}

impl Principal {
    /// The label of its key.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Shared { name } => name,
            Self::Own(record) => &record.name,
        }
    }

    /// The public id of its key, if the key is its own.
    pub(crate) fn key_id(&self) -> Option<&str> {
        match self {
            Self::Shared { .. } => None,
            Self::Own(record) => Some(&record.id),
        }
    }

    /// Whether another holder has the same key.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shared { .. }, Self::Shared { .. }) => true,
            (Self::Own(one), Self::Own(other)) => one.id == other.id,
            _ => false,
        }
    }

    /// Whether its key opens for one client id alone: who shows it is that client.
    pub(crate) fn opens_for_one_client(&self) -> bool {
        match self {
            Self::Shared { .. } => false,
            Self::Own(record) => record.client.as_ref().is_some_and(super::Pattern::is_exact),
        }
    }

    /// Whether its key is the one of this public id, or the shared one where there is none.
    pub(crate) fn has_key_id(&self, id: Option<&str>) -> bool {
        self.key_id() == id
    }

    /// Whether it may see and cancel what others do.
    pub(crate) const fn is_operator(&self) -> bool {
        match self {
            Self::Shared { .. } => true,
            Self::Own(record) => matches!(record.role, Role::Operator),
        }
    }

    /// Whether it may submit tasks for devices.
    pub(crate) const fn is_orchestrator(&self) -> bool {
        match self {
            Self::Shared { .. } => true,
            Self::Own(record) => matches!(record.role, Role::Operator | Role::Constellation),
        }
    }

    /// Whether it may register so.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_register(&self, role: ClientType, id: &ClientId) -> Result<(), String> {
        let Self::Own(record) = self else { return Ok(()) };
        let fits = match role {
            ClientType::Device => record.role == Role::Device,
            ClientType::Constellation => self.is_orchestrator(),
        };
        if !fits {
            return Err(format!(
                "This key is for the role {}: it does not open for a {role}",
                record.role
            ));
        }
        if !record.admits_client(id) {
            let pattern = record.client.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(format!("This key is for the ids '{pattern}': '{id}' is none of them"));
        }
        Ok(())
    }

    /// Whether it may work with this device. A device works only with itself, and the caller checks that
    /// before.
    pub(crate) fn may_reach(&self, device: &ClientId) -> bool {
        match self {
            Self::Shared { .. } => true,
            Self::Own(record) => {
                self.is_orchestrator()
                    && record.target.as_ref().is_none_or(|pattern| pattern.matches(device))
            }
        }
    }

    /// Whether it may see and cancel this task.
    pub(crate) fn may_see(&self, task: &Task) -> bool {
        self.is_operator()
            || match self {
                Self::Shared { .. } => task.key.id.is_none(),
                Self::Own(record) => task.key.id.as_deref() == Some(&record.id),
            }
    }

    /// Whether its key itself names the devices it may work with, which then counts more than the
    /// target that it declared at registration.
    pub(crate) const fn names_targets(&self) -> bool {
        match self {
            Self::Shared { .. } => false,
            Self::Own(record) => record.target.is_some(),
        }
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        match self {
            Self::Shared { .. } => false,
            Self::Own(record) => record.is_expired(now),
        }
    }
}

/// All keys that open.
pub(crate) struct Keyring {
    shared: SecretString,
    holder_of_shared: Arc<Principal>,
    is_legacy: bool,
    created: RwLock<Created>,
    /// When keys will expire.
    ends: Mutex<Vec<Timestamp>>,
    /// When those that are there were last used.
    uses: Mutex<HashMap<String, Timestamp>>,
    /// The number of the newest challenge that each key pair has answered: an earlier one is not taken any more.
    answered: Mutex<HashMap<String, u64>>,
}

/// The keys that were created or bound, and the tokens that make more of them.
#[derive(Default)]
struct Created {
    /// By their public ids.
    holders: HashMap<String, Arc<Principal>>,
    /// The public ids of the key pairs, by the devices that they are bound to.
    bound: HashMap<String, String>,
    join_tokens: Vec<JoinToken>,
}

/// How exactly it is known when a key was last used: what is used all the time need not be written all the time.
const USE_STEP: SignedDuration = SignedDuration::from_secs(60);

/// Why a device has not proved that it has its key pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotProved {
    #[error("The signature is not in the form of this server's devices")]
    Form,
    #[error("This server knows no key pair '{0}': it was revoked, or is another server's")]
    UnknownKey(String),
    #[error(
        "This challenge was answered already, or is older than 30 s, or is none of this server's"
    )]
    Challenge,
    #[error(
        "The device saw another public key than this server's: somebody may stand in between; where that is a \
         TLS proxy, its key's hash belongs into the server's setting proxy_key_hash"
    )]
    OtherPin,
    #[error("The signature is not that of the device's key pair")]
    WrongSignature,
}

impl Keyring {
    pub(crate) fn new(keys: Keys) -> Self {
        let [local, legacy] = SHARED_NAMES;
        let name = if keys.is_legacy { legacy } else { local };
        let ring = Self {
            shared: keys.shared,
            holder_of_shared: Arc::new(Principal::Shared { name }),
            is_legacy: keys.is_legacy,
            created: RwLock::default(),
            ends: Mutex::default(),
            uses: Mutex::default(),
            answered: Mutex::default(),
        };
        ring.replace(KeyBook { keys: keys.created, join_tokens: keys.join_tokens });
        ring
    }

    /// Whether everybody may share one given key, as with UFO's server.
    pub(crate) const fn is_legacy(&self) -> bool {
        self.is_legacy
    }

    pub(crate) const fn holder_of_shared(&self) -> &Arc<Principal> {
        &self.holder_of_shared
    }

    /// The holder of a key by its public id, or of the shared one where there is none; if that still opens.
    pub(crate) fn by_id(&self, id: Option<&str>) -> Option<Arc<Principal>> {
        let Some(id) = id else { return Some(self.holder_of_shared.clone()) };
        let created = self.created();
        created.holders.get(id).filter(|holder| !holder.is_expired(Timestamp::now())).cloned()
    }

    /// How many created keys there are.
    pub(crate) fn len(&self) -> usize {
        self.created().holders.len()
    }

    /// Whether a key has expired since this was asked last.
    pub(crate) fn has_expired(&self) -> bool {
        let now = Timestamp::now();
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ends.len();
        ends.retain(|end| *end > now);
        ends.len() < before
    }

    /// Puts other created keys and join tokens into force.
    pub(crate) fn replace(&self, book: KeyBook) {
        let KeyBook { keys: records, join_tokens } = book;
        let ends = records.iter().filter_map(|record| record.expires_at).collect();
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = ends;
        let pairs = records.iter().filter(|record| record.is_key_pair());
        let bound =
            |record: &KeyRecord| Some((record.client.as_ref()?.to_string(), record.id.clone()));
        let bound = pairs.filter_map(bound).collect();
        let holder = |record: KeyRecord| (record.id.clone(), Arc::new(Principal::Own(record)));
        let holders: HashMap<_, _> = records.into_iter().map(holder).collect();
        let is_there = |id: &String| holders.contains_key(id);
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|id, _| is_there(id));
        drop(uses);
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.retain(|id, _| is_there(id));
        drop(answered);
        let created = Created { holders, bound, join_tokens };
        *self.created.write().unwrap_or_else(PoisonError::into_inner) = created;
    }

    /// Whether who shows a join token may join with it, as far as can be told without the disk: `member` is the id and
    /// the public key of a device.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_join(
        &self,
        token: &SecretString,
        role: Role,
        member: Option<(&ClientId, &str)>,
    ) -> Result<(), JoinRefused> {
        let created = self.created();
        let token = JoinToken::find(&created.join_tokens, token).ok_or(JoinRefused::Unknown)?;
        let bound = member.and_then(|(device, public_key)| {
            let id = created.bound.get(device.as_str())?;
            Some((&**created.holders.get(id)?, public_key))
        });
        match bound {
            Some((Principal::Own(record), public_key)) if record.is_of(token, public_key) => Ok(()),
            _ => token.may_be_used(role, Timestamp::now()),
        }
    }

    /// Whether the holder of a key may have this id, as far as it is bound to a key pair: then nobody else may, whatever
    /// its key opens otherwise.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_bound(
        &self,
        holder: &Principal,
        role: ClientType,
        id: &ClientId,
    ) -> Result<(), String> {
        let created = self.created();
        let Some(bound) = created.bound.get(id.as_str()) else { return Ok(()) };
        if holder.key_id() == Some(bound) && role == ClientType::Device {
            return Ok(());
        }
        Err(format!(
            "'{id}' is bound to the key pair of a device that has joined, and opens for that alone; \
             `flightdeck key revoke {bound}` unbinds it"
        ))
    }

    /// The holder of the valid key that a request shows, if it shows one.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, uri: &Uri) -> Option<Arc<Principal>> {
        let mut found = None;
        shown_keys(headers, uri, |shown| {
            found = self.holder(shown);
            found.is_some()
        });
        found.inspect(|holder| self.note_use(holder))
    }

    /// The device whose key pair has signed what a request shows, if it has seen one of these public keys of ours.
    /// `challenge` is the number of what it answers, which it does once.
    pub(crate) fn prove(
        &self,
        shown: &Shown,
        challenge: u64,
        store: &str,
        own: [Option<Pin>; 3],
    ) -> Result<Arc<Principal>, NotProved> {
        let unknown = || NotProved::UnknownKey(shown.key_id.clone());
        let holder = self.by_id(Some(&shown.key_id)).ok_or_else(unknown)?;
        let Principal::Own(record) = &*holder else { return Err(unknown()) };
        if !record.is_key_pair() {
            return Err(unknown());
        }
        let is_own = match shown.pin {
            // Whoever saw no TLS, where there is some, was not talking to us.
            None => own.iter().all(Option::is_none),
            seen => own.contains(&seen),
        };
        if !is_own {
            return Err(NotProved::OtherPin);
        }
        if !record.has_signed(shown, store) {
            return Err(NotProved::WrongSignature);
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = answered.entry(record.id.clone()).or_default();
        if challenge <= *newest {
            return Err(NotProved::Challenge);
        }
        *newest = challenge;
        drop(answered);
        self.note_use(&holder);
        Ok(holder)
    }

    /// When each key was last used, since the server started; to within [`USE_STEP`].
    pub(crate) fn uses(&self) -> HashMap<String, Timestamp> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_use(&self, holder: &Principal) {
        let Some(id) = holder.key_id() else { return };
        let now = Timestamp::now();
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(id) {
            Some(last) if now.duration_since(*last) < USE_STEP => {}
            Some(last) => *last = now,
            None => drop(uses.insert(id.to_owned(), now)),
        }
    }

    /// Whether a request shows a created key, by its form, that is not known: it may be a new one.
    pub(crate) fn shows_unknown(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let is_unknown =
            |shown: &[u8]| id_of(shown).is_some_and(|id| !self.created().holders.contains_key(id));
        shown_keys(headers, uri, is_unknown)
    }

    /// Whether the holder's key still opens as it did.
    pub(crate) fn is_valid(&self, principal: &Principal) -> bool {
        match principal {
            Principal::Shared { .. } => true,
            Principal::Own(record) => {
                !record.is_expired(Timestamp::now())
                    && self
                        .created()
                        .holders
                        .get(&record.id)
                        .is_some_and(|known| **known == *principal)
            }
        }
    }

    /// Compared in constant time, on bytes.
    fn holder(&self, shown: &[u8]) -> Option<Arc<Principal>> {
        // An empty key is a mistake, never a door.
        if shown.is_empty() {
            return None;
        }
        if bool::from(self.shared.expose_secret().as_bytes().ct_eq(shown)) {
            return Some(self.holder_of_shared.clone());
        }
        let holder = self.created().holders.get(id_of(shown)?)?.clone();
        let opens = match &*holder {
            Principal::Own(record) => record.is(shown) && !holder.is_expired(Timestamp::now()),
            Principal::Shared { .. } => false,
        };
        opens.then_some(holder)
    }

    fn created(&self) -> RwLockReadGuard<'_, Created> {
        self.created.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::auth::NewKey;

    fn ring(created: Vec<KeyRecord>) -> Keyring {
        let shared = SecretString::from("s&crét".to_owned());
        Keyring::new(Keys { shared, is_legacy: true, created, join_tokens: Vec::new() })
    }

    fn shows(ring: &Keyring, uri: &str, headers: &[(&'static str, &[u8])]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_bytes(value).unwrap());
        }
        ring.authenticate(&map, &uri.parse().unwrap()).map(|holder| holder.name().to_owned())
    }

    fn new(role: Role, client: Option<&str>, target: Option<&str>) -> NewKey {
        let pattern = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let (client, target) = (pattern(client), pattern(target));
        NewKey { name: "n".to_owned(), role, client, target, expires_at: None }
    }

    fn id(text: &str) -> ClientId {
        ClientId::new(text).unwrap()
    }

    #[test]
    fn a_key_is_taken_in_each_form_and_nothing_else_is() {
        let ring = ring(Vec::new());
        let is_open = |uri, headers: &[(&'static str, &[u8])]| shows(&ring, uri, headers).is_some();
        assert!(is_open("/ws?token=s%26cr%C3%A9t", &[]));
        assert!(is_open("/ws", &[("x-api-key", "s&crét".as_bytes())]));
        assert!(is_open("/ws", &[("authorization", "bearer s&crét".as_bytes())]));
        for uri in ["/ws", "/ws?token=", "/ws?token=x", "/ws?tok=s%26cr%C3%A9t"] {
            assert!(!is_open(uri, &[]), "{uri}");
        }
        assert!(!is_open("/ws", &[("x-api-key", b"\xff\xfe")]));
        assert!(!is_open("/ws", &[("authorization", b"Basic abc")]));
    }

    #[test]
    fn a_created_key_opens_until_it_is_revoked_or_expires() {
        let (record, key) = KeyRecord::create(new(Role::Device, None, None)).unwrap();
        let stored = serde_json::to_string(&record).unwrap();
        let secret = key.expose_secret().rsplit('_').next().unwrap();
        assert!(!stored.contains(secret), "only its hash is stored");

        let ring = ring(vec![record.clone()]);
        let opens = |ring: &Keyring| {
            shows(ring, "/ws", &[("x-api-key", key.expose_secret().as_bytes())]).is_some()
        };
        assert!(opens(&ring));
        for wrong in [format!("fd_{}_x", record.id), format!("fd_{}", record.id)] {
            assert_eq!(shows(&ring, "/ws", &[("x-api-key", wrong.as_bytes())]), None);
        }
        let unknown = |ring: &Keyring, key: &str| {
            ring.shows_unknown(&HeaderMap::new(), &format!("/ws?token={key}").parse().unwrap())
        };
        assert!(unknown(&ring, "fd_x_y") && !unknown(&ring, "x"));
        assert!(!unknown(&ring, key.expose_secret()));
        let holder = ring.holder(key.expose_secret().as_bytes()).unwrap();
        assert!(ring.is_valid(&holder));
        ring.replace(KeyBook::default());
        assert!(!opens(&ring) && !ring.is_valid(&holder));

        let past = Timestamp::now() - SignedDuration::from_secs(1);
        let mut expired = record;
        expired.expires_at = Some(past);
        ring.replace(KeyBook { keys: vec![expired], ..KeyBook::default() });
        assert!(!opens(&ring) && !ring.is_valid(&holder));
    }

    #[test]
    fn a_key_binds_its_holder_to_its_role_and_its_ids() {
        let holder = |new| Principal::Own(KeyRecord::create(new).unwrap().0);
        let (device, constellation) = (ClientType::Device, ClientType::Constellation);
        let lab = holder(new(Role::Device, Some("lab-*"), None));
        assert_eq!(lab.may_register(device, &id("lab-1")), Ok(()));
        assert!(lab.may_register(device, &id("x")).unwrap_err().contains("'lab-*'"));
        assert!(lab.may_register(constellation, &id("lab-1")).is_err());
        assert!(!lab.may_reach(&id("lab-1")) && !lab.is_orchestrator());

        let galaxy = holder(new(Role::Constellation, None, Some("lab-*")));
        assert_eq!(galaxy.may_register(constellation, &id("g")), Ok(()));
        assert!(galaxy.may_register(device, &id("lab-1")).is_err());
        assert!(galaxy.may_reach(&id("lab-1")) && !galaxy.may_reach(&id("office-1")));
        assert!(galaxy.names_targets() && !galaxy.is_operator());

        let operator = holder(new(Role::Operator, None, None));
        assert_eq!(operator.may_register(constellation, &id("o")), Ok(()));
        assert!(operator.may_register(device, &id("o")).is_err());
        assert!(operator.is_operator() && operator.may_reach(&id("any")));

        assert!(KeyRecord::create(new(Role::Device, None, Some("x"))).is_err());
        for taken in SHARED_NAMES {
            let new = NewKey { name: taken.to_owned(), ..new(Role::Operator, None, None) };
            assert!(KeyRecord::create(new).unwrap_err().contains("shared key"), "{taken}");
        }
    }
}
