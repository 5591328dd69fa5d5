//! Join tokens, and what they open: one new key pair for a device, or one new key for an operator. Pure; who keeps the
//! book is for `cli`.

use std::collections::HashSet;
use std::net::IpAddr;

use aip::ClientId;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{ID_CHARS, MAX_NAME_CHARS, check_name, hash, is_hash_of};
use super::{KeyRecord, NewKey, Pattern, Role, generate_key};

/// What join tokens begin with.
const PREFIX: &str = "fdj_";

/// The most join tokens that are kept, with those that are used up or have expired.
const MAX_TOKENS: usize = 1024;

/// The most keys that may be bound to devices or created by joining.
const MAX_KEYS: usize = 32_768;

/// The most uses of one token.
const MAX_USES: u32 = 10_000;

/// How long a token is kept after its end, so that who used it first can still be told.
const KEPT_AFTER_END: SignedDuration = SignedDuration::from_hours(7 * 24);

/// All that is kept of keys: those that open, and the tokens that make new ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyBook {
    /// The created and the bound ones.
    pub keys: Vec<KeyRecord>,
    /// The join tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join_tokens: Vec<JoinToken>,
}

/// What is asked for when a join token is made.
#[derive(Debug, Clone)]
pub struct NewJoinToken {
    /// A label for people: what it opens is called so too.
    pub name: String,
    /// Who may use it: devices, or operators.
    pub role: Role,
    /// Which ids devices may join with; any if `None`.
    pub client: Option<Pattern>,
    /// How often it may be used.
    pub uses: u32,
    /// When it stops to open.
    pub expires_at: Timestamp,
    /// Whether it opens an id that is not new, whose key pair is replaced.
    pub replaces: bool,
}

/// A join token, as it is stored: without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The part of the token that names it: what stands between `fdj_` and the next `_`.
    pub id: String,
    /// The label.
    pub name: String,
    /// Who may use it.
    pub role: Role,
    /// Which ids devices may join with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Pattern>,
    /// Whether it opens an id that is not new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaces: bool,
    sha256: String,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was.
    #[serde(default)]
    pub used: u32,
    /// Who used it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_use: Option<FirstUse>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to open.
    pub expires_at: Timestamp,
}

/// Who used a token first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstUse {
    /// The id of the device, or the name of the operator's key.
    pub who: String,
    /// When.
    pub at: Timestamp,
    /// From where, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl std::fmt::Display for FirstUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}' used it first, {}", self.who, self.at.strftime("%Y-%m-%d %H:%M:%S UTC"))?;
        match self.address {
            Some(address) => write!(f, ", from {address}"),
            None => Ok(()),
        }
    }
}

/// A device that wants to join.
#[derive(Debug)]
pub(crate) struct Joining<'a> {
    pub(crate) token: &'a SecretString,
    pub(crate) device: &'a ClientId,
    /// Its public key, in the form of [`link::proof`].
    pub(crate) public_key: &'a str,
    pub(crate) address: Option<IpAddr>,
    /// Whether a client has the id: it is connected, or away and expected back.
    pub(crate) is_present: bool,
}

/// Why nobody joins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinRefused {
    #[error("There is no such join token; it may have been revoked")]
    Unknown,
    #[error("The join token '{0}' expired at {1}")]
    Expired(String, Timestamp),
    #[error("The join token '{0}' is used up: {1}")]
    Used(String, String),
    #[error("The join token '{0}' is for {1}")]
    Role(String, &'static str),
    #[error("The join token '{0}' is for the ids '{1}': '{2}' is none of them")]
    OtherId(String, Pattern, ClientId),
    #[error("An id with * in it cannot be bound to a key pair: '{0}'")]
    NoPlainId(ClientId),
    #[error(
        "'{0}' is no new id: {1}. An operator lets it join again with `flightdeck device rejoin`"
    )]
    Taken(ClientId, &'static str),
    #[error("There are {MAX_KEYS} keys already; revoke some")]
    Full,
}

impl KeyBook {
    /// Makes a join token: it is in the book then, and is returned to be shown once.
    ///
    /// # Errors
    /// When what was asked for cannot be.
    pub fn add_token(&mut self, new: NewJoinToken) -> Result<SecretString, String> {
        check_name(&new.name)?;
        let now = Timestamp::now();
        if new.uses == 0 || new.uses > MAX_USES {
            return Err(format!("a join token has 1 to {MAX_USES} uses"));
        }
        if !matches!(new.role, Role::Device | Role::Operator) {
            return Err("a join token is for devices or operators".to_owned());
        }
        let is_kept = |token: &JoinToken| now.duration_since(token.expires_at) < KEPT_AFTER_END;
        self.join_tokens.retain(is_kept);
        let is_open = |token: &JoinToken| token.used < token.uses && token.expires_at > now;
        if self.join_tokens.iter().any(|token| token.name == new.name && is_open(token)) {
            return Err(format!("there is a join token '{}' already; revoke it first", new.name));
        }
        self.join_tokens.retain(|token| token.name != new.name);
        if self.join_tokens.len() >= MAX_TOKENS {
            return Err(format!("there are {MAX_TOKENS} join tokens already; revoke some"));
        }
        let id: String = Uuid::new_v4().simple().to_string().chars().take(ID_CHARS).collect();
        let token = format!("{PREFIX}{id}_{}", generate_key().expose_secret());
        self.join_tokens.push(JoinToken {
            id,
            name: new.name,
            role: new.role,
            client: new.client,
            replaces: new.replaces,
            sha256: hash(token.as_bytes()),
            uses: new.uses,
            used: 0,
            first_use: None,
            created_at: now,
            expires_at: new.expires_at,
        });
        Ok(token.into())
    }

    /// Takes a join token or a key out of the book, by its name or id. A key goes before a token of the same name.
    pub fn remove_key(&mut self, name: &str) -> Option<KeyRecord> {
        let found = self.keys.iter().position(|key| key.name == name || key.id == name)?;
        Some(self.keys.remove(found))
    }

    /// The same of a join token.
    pub fn remove_token(&mut self, name: &str) -> Option<JoinToken> {
        let found =
            self.join_tokens.iter().position(|token| token.name == name || token.id == name)?;
        Some(self.join_tokens.remove(found))
    }

    /// Binds the id of a device to its key pair. A device whose answer was lost asks again, and is given the same.
    pub(crate) fn bind(
        &mut self,
        joining: &Joining<'_>,
        now: Timestamp,
    ) -> Result<KeyRecord, JoinRefused> {
        let at = self.position(joining.token)?;
        let device = joining.device;
        if let Some(bound) = self.bound_to(device)
            && bound.is_of(&self.join_tokens[at], joining.public_key)
        {
            return Ok(bound.clone());
        }
        let token = &self.join_tokens[at];
        token.may_be_used(Role::Device, now)?;
        if let Some(pattern) = token.client.as_ref().filter(|pattern| !pattern.matches(device)) {
            return Err(JoinRefused::OtherId(token.name.clone(), pattern.clone(), device.clone()));
        }
        let pattern: Pattern =
            device.as_str().parse().map_err(|_| JoinRefused::NoPlainId(device.clone()))?;
        if !pattern.is_exact() {
            return Err(JoinRefused::NoPlainId(device.clone()));
        }
        if !token.replaces {
            self.check_new(joining)?;
        }
        self.keys.retain(|key| !key.is_bound_to(device));
        self.check_room()?;
        let name = self.free_name(&self.join_tokens[at].name);
        let record =
            KeyRecord::bind(name, pattern, joining.public_key, &self.join_tokens[at].id, now);
        self.keys.push(record.clone());
        self.join_tokens[at].note_use(device.as_str(), joining.address, now);
        Ok(record)
    }

    /// Makes an operator's key.
    pub(crate) fn admit_operator(
        &mut self,
        token: &SecretString,
        address: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<(KeyRecord, SecretString), JoinRefused> {
        let at = self.position(token)?;
        self.join_tokens[at].may_be_used(Role::Operator, now)?;
        self.check_room()?;
        let name = self.free_name(&self.join_tokens[at].name);
        let new =
            NewKey { name, role: Role::Operator, client: None, target: None, expires_at: None };
        // The name of a token is one that a key may have.
        let (record, key) = KeyRecord::create(new).map_err(|_| JoinRefused::Unknown)?;
        self.keys.push(record.clone());
        self.join_tokens[at].note_use(&record.name, address, now);
        Ok((record, key))
    }

    /// Where a token stands that is shown.
    fn position(&self, shown: &SecretString) -> Result<usize, JoinRefused> {
        self.join_tokens.iter().position(JoinToken::is_shown(shown)).ok_or(JoinRefused::Unknown)
    }

    fn bound_to(&self, device: &ClientId) -> Option<&KeyRecord> {
        self.keys.iter().find(|key| key.is_bound_to(device))
    }

    fn check_new(&self, joining: &Joining<'_>) -> Result<(), JoinRefused> {
        let device = joining.device;
        let taken = |why| Err(JoinRefused::Taken(device.clone(), why));
        if self.bound_to(device).is_some() {
            return taken("it is bound to another key pair");
        }
        let names = |pattern: &Pattern| pattern.is_exact() && pattern.matches(device);
        if self.keys.iter().any(|key| key.client.as_ref().is_some_and(names)) {
            return taken("a created key names it");
        }
        if joining.is_present {
            return taken("a client with it is connected, or expected back");
        }
        Ok(())
    }

    fn check_room(&self) -> Result<(), JoinRefused> {
        if self.keys.len() < MAX_KEYS { Ok(()) } else { Err(JoinRefused::Full) }
    }

    /// A name that no key has: this one, or with a number behind it.
    fn free_name(&self, name: &str) -> String {
        let taken: HashSet<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        let is_free = |name: &String| !taken.contains(name.as_str());
        let numbered = |number: usize| {
            let number = format!("-{number}");
            let kept = name.chars().take(MAX_NAME_CHARS - number.len());
            kept.chain(number.chars()).collect::<String>()
        };
        let mut names = std::iter::once(name.to_owned()).chain((2..).map(numbered));
        names.find(is_free).unwrap_or_default()
    }
}

impl JoinToken {
    /// The one of these that is shown.
    pub(super) fn find<'a>(tokens: &'a [Self], shown: &SecretString) -> Option<&'a Self> {
        tokens.iter().find(|token| Self::is_shown(shown)(token))
    }

    /// What tells whether a token is the one that is shown. In constant time.
    fn is_shown(shown: &SecretString) -> impl Fn(&Self) -> bool {
        let shown = shown.expose_secret();
        let id = shown.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map(|(id, _)| id);
        move |token| id == Some(&token.id) && is_hash_of(&token.sha256, shown.as_bytes())
    }

    /// Whether it has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// Whether it opens for who is in this role.
    pub(super) fn may_be_used(&self, role: Role, now: Timestamp) -> Result<(), JoinRefused> {
        let name = || self.name.clone();
        if self.role != role {
            let what = match self.role {
                Role::Operator => "operators: use it with `flightdeck login`",
                _ => "devices: use it with `flightdeck device --join`",
            };
            return Err(JoinRefused::Role(name(), what));
        }
        if self.used >= self.uses {
            let first = self.first_use.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(JoinRefused::Used(name(), first));
        }
        if self.is_expired(now) {
            return Err(JoinRefused::Expired(name(), self.expires_at));
        }
        Ok(())
    }

    fn note_use(&mut self, who: &str, address: Option<IpAddr>, at: Timestamp) {
        self.used += 1;
        self.first_use.get_or_insert_with(|| FirstUse { who: who.to_owned(), at, address });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const OTHER_KEY: &str = "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn new(name: &str, client: Option<&str>) -> NewJoinToken {
        NewJoinToken {
            name: name.to_owned(),
            role: Role::Device,
            client: client.map(|client| client.parse().unwrap()),
            uses: 1,
            expires_at: Timestamp::now() + SignedDuration::from_hours(1),
            replaces: false,
        }
    }

    fn bind(
        book: &mut KeyBook,
        token: &SecretString,
        device: &str,
        public_key: &str,
    ) -> Result<KeyRecord, String> {
        bind_present(book, token, device, public_key, false)
    }

    fn bind_present(
        book: &mut KeyBook,
        token: &SecretString,
        device: &str,
        public_key: &str,
        is_present: bool,
    ) -> Result<KeyRecord, String> {
        let device = ClientId::new(device).unwrap();
        let address = Some("192.0.2.7".parse().unwrap());
        let joining = Joining { token, device: &device, public_key, address, is_present };
        book.bind(&joining, Timestamp::now()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_opens_once_and_then_says_who_used_it_first() {
        let mut book = KeyBook::default();
        let token = book.add_token(new("lab", Some("lab-*"))).unwrap();
        let stored = serde_json::to_string(&book).unwrap();
        assert!(!stored.contains(token.expose_secret().rsplit('_').next().unwrap()));

        let strange = bind(&mut book, &token, "office", KEY).unwrap_err();
        assert!(strange.contains("'lab-*'") && strange.contains("'office'"), "{strange}");
        let record = bind(&mut book, &token, "lab-1", KEY).unwrap();
        assert_eq!((record.name.as_str(), record.role), ("lab", Role::Device));
        // Its answer was lost, and it asks again.
        assert_eq!(bind(&mut book, &token, "lab-1", KEY).unwrap(), record);
        let used = bind(&mut book, &token, "lab-2", OTHER_KEY).unwrap_err();
        for says in ["'lab'", "'lab-1' used it first", "192.0.2.7"] {
            assert!(used.contains(says), "{used}");
        }
        assert_eq!((book.keys.len(), book.join_tokens[0].used), (1, 1));
        let read: KeyBook = serde_json::from_str(&serde_json::to_string(&book).unwrap()).unwrap();
        assert_eq!(read, book);
    }

    #[test]
    fn a_token_opens_only_a_new_id() {
        let mut book = KeyBook::default();
        let created = |client: &str| {
            let client = Some(client.parse().unwrap());
            let name = "made".to_owned();
            KeyRecord::create(NewKey {
                name,
                role: Role::Device,
                client,
                target: None,
                expires_at: None,
            })
            .unwrap()
            .0
        };
        book.keys = vec![created("named"), created("lab-*")];
        let token = book.add_token(NewJoinToken { uses: 10, ..new("many", None) }).unwrap();
        bind(&mut book, &token, "bound", KEY).unwrap();
        for (device, is_present, why) in [
            ("bound", false, "bound to another key pair"),
            ("named", false, "a created key names it"),
            ("there", true, "connected, or expected back"),
        ] {
            let refused =
                bind_present(&mut book, &token, device, OTHER_KEY, is_present).unwrap_err();
            assert!(refused.contains(why) && refused.contains("device rejoin"), "{refused}");
        }
        assert!(bind(&mut book, &token, "a*", KEY).unwrap_err().contains('*'));
        // A pattern names no id of its own.
        assert_eq!(bind(&mut book, &token, "lab-7", OTHER_KEY).unwrap().name, "many-2");

        let again = NewJoinToken { replaces: true, ..new("again", Some("bound")) };
        let again = book.add_token(again).unwrap();
        bind_present(&mut book, &again, "bound", OTHER_KEY, true).unwrap();
        let bound = ClientId::new("bound").unwrap();
        let of_device: Vec<_> = book.keys.iter().filter(|key| key.is_bound_to(&bound)).collect();
        let token = JoinToken::find(&book.join_tokens, &again).unwrap();
        assert!(of_device.len() == 1 && of_device[0].is_of(token, OTHER_KEY));
    }

    #[test]
    fn strange_expired_and_revoked_tokens_open_nothing() {
        let mut book = KeyBook::default();
        let token = book.add_token(new("lab", None)).unwrap();
        let id = book.join_tokens[0].id.clone();
        for wrong in ["", "x", &format!("fdj_{id}"), &format!("fdj_{id}_x"), "fdj__"] {
            let refused = bind(&mut book, &wrong.into(), "lab-1", KEY).unwrap_err();
            assert!(refused.contains("no such join token"), "{wrong}: {refused}");
        }
        let refused = book.admit_operator(&token, None, Timestamp::now()).unwrap_err();
        assert!(refused.to_string().contains("device --join"), "{refused}");
        book.join_tokens[0].expires_at = Timestamp::now() - SignedDuration::from_secs(1);
        assert!(bind(&mut book, &token, "lab-1", KEY).unwrap_err().contains("expired at"));
        book.remove_token("lab").unwrap();
        assert!(bind(&mut book, &token, "lab-1", KEY).unwrap_err().contains("no such join token"));
        assert!(book.keys.is_empty());
    }

    #[test]
    fn an_operator_gets_a_key_of_its_own() {
        let mut book = KeyBook::default();
        let token =
            book.add_token(NewJoinToken { role: Role::Operator, ..new("me", None) }).unwrap();
        let device = bind(&mut book, &token, "lab-1", KEY).unwrap_err();
        assert!(device.contains("flightdeck login"), "{device}");
        let (record, key) = book.admit_operator(&token, None, Timestamp::now()).unwrap();
        assert_eq!((record.role, record.name.as_str()), (Role::Operator, "me"));
        assert!(key.expose_secret().starts_with("fd_"));
        let used = book.admit_operator(&token, None, Timestamp::now()).unwrap_err();
        assert!(used.to_string().contains("'me' used it first"), "{used}");
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        let mut book = KeyBook::default();
        let error = |book: &mut KeyBook, new| book.add_token(new).unwrap_err();
        assert!(error(&mut book, new("", None)).contains("1 to 64"));
        assert!(error(&mut book, NewJoinToken { uses: 0, ..new("n", None) }).contains("uses"));
        let role = Role::Constellation;
        assert!(error(&mut book, NewJoinToken { role, ..new("n", None) }).contains("devices or"));
        book.add_token(new("n", None)).unwrap();
        assert!(error(&mut book, new("n", None)).contains("already"));
    }
}
