//! The server's own certificate: made at its first start where other machines are let in and none was named, and renewed
//! with the same key pair, so that who has pinned its public key goes on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use server::Tls;

use crate::state::{StateFolder, replace_private_file, write_private_file};
use crate::tls::Files;

/// How long a certificate is valid. Some systems take none that is valid for longer than 398 days.
const LIFETIME: SignedDuration = SignedDuration::from_hours(397 * 24);

/// It is renewed when it ends sooner than this.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);

/// Time between two looks at whether it ends soon.
const LOOK_EVERY: Duration = Duration::from_hours(1);

/// Clocks of clients may be late by this much.
const LATE_CLOCKS: SignedDuration = SignedDuration::from_hours(24);

/// The most addresses of this machine that a certificate names.
const MAX_ADDRESSES: usize = 64;

/// Where the server's own certificate is.
#[derive(Debug, Clone)]
pub(crate) struct OwnCertificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl OwnCertificate {
    pub(crate) fn new(folder: &StateFolder) -> Self {
        let path = |name| folder.path().join(name);
        Self { certificate: path("tls-cert.pem"), key: path("tls-key.pem") }
    }

    /// Makes it where it is missing, ends soon, or lacks a name of this machine.
    ///
    /// # Errors
    /// When its files cannot be read or written.
    pub(crate) fn ensure(&self) -> anyhow::Result<Files> {
        let names = names();
        let pair = self.pair()?;
        let is_good = self.loaded(&pair).is_some_and(|tls| {
            !tls.ends_within(RENEW_BEFORE) && names.iter().all(|name| tls.names(name))
        });
        if !is_good {
            self.write(&pair, names)?;
        }
        Ok(Files::new(self.certificate.clone(), self.key.clone()))
    }

    /// Renews it whenever it ends soon, for as long as the program runs. Whoever watches its files shows the new one.
    pub(crate) async fn keep_valid(self, tls: Tls) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !tls.ends_within(RENEW_BEFORE) {
                continue;
            }
            let own = self.clone();
            match tokio::task::spawn_blocking(move || own.ensure()).await {
                Ok(Ok(_)) => tracing::info!("the server's own TLS certificate was renewed"),
                Ok(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the server's own TLS certificate ends soon");
                }
                // A panic says so itself.
                Err(_) => {}
            }
        }
    }

    /// The key pair, which is made once.
    fn pair(&self) -> anyhow::Result<KeyPair> {
        let cannot = || format!("cannot use the TLS key {}", self.key.display());
        if !self.key.exists() {
            let pair = KeyPair::generate().with_context(cannot)?;
            write_private_file(&self.key, &pair.serialize_pem()).with_context(cannot)?;
            return Ok(pair);
        }
        let text = std::fs::read_to_string(&self.key).with_context(cannot)?;
        KeyPair::from_pem(&text)
            .context(
                "it is damaged; put a copy back, or remove it: all devices have to join anew then",
            )
            .with_context(cannot)
    }

    /// The certificate that is there, if it can be used with the key pair.
    fn loaded(&self, pair: &KeyPair) -> Option<Tls> {
        let certificate = std::fs::read(&self.certificate).ok()?;
        Tls::new(&certificate, pair.serialize_pem().as_bytes()).ok()
    }

    fn write(&self, pair: &KeyPair, names: BTreeSet<String>) -> anyhow::Result<()> {
        let cannot = || format!("cannot make the TLS certificate {}", self.certificate.display());
        let certificate = params(names).and_then(|params| Ok(params.self_signed(pair)?));
        let certificate = certificate.with_context(cannot)?;
        replace_private_file(&self.certificate, certificate.pem().trim_end()).with_context(cannot)
    }
}

/// What others may call this machine.
fn names() -> BTreeSet<String> {
    let found = local_ip_address::list_afinet_netifas().unwrap_or_default();
    let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses = local.into_iter().chain(found.into_iter().map(|(_, address)| address));
    let host = device::info::host_name();
    // Anything else could not stand in a certificate.
    let host = Some(host).filter(|host| {
        host.is_ascii() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    });
    let mut names: BTreeSet<_> =
        addresses.take(MAX_ADDRESSES).map(|address| address.to_canonical().to_string()).collect();
    names.extend(host.filter(|host| !host.is_empty()));
    names.insert("localhost".to_owned());
    names
}

fn params(names: BTreeSet<String>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "flightdeck");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = Timestamp::now();
    let (year, month, day) = date(now - LATE_CLOCKS)?;
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(now + LIFETIME)?;
    params.not_after = date_time_ymd(year, month, day);
    Ok(params)
}

/// Year, month and day.
fn date(at: Timestamp) -> anyhow::Result<(i32, u8, u8)> {
    let date = at.to_zoned(TimeZone::UTC).date();
    Ok((date.year().into(), date.month().try_into()?, date.day().try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (tempfile::TempDir, OwnCertificate) {
        let home = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(Some(home.path().to_owned())).unwrap();
        let own = OwnCertificate::new(&folder);
        (home, own)
    }

    fn certificate(own: &OwnCertificate) -> String {
        std::fs::read_to_string(&own.certificate).unwrap()
    }

    #[test]
    fn it_is_made_once_for_all_names_of_this_machine_and_only_its_owner_reads_the_key() {
        let (_home, own) = own();
        own.ensure().unwrap();
        let first = certificate(&own);
        let tls = own.loaded(&own.pair().unwrap()).unwrap();
        for name in ["localhost", "127.0.0.1", "::1"] {
            assert!(tls.names(name), "{name}");
        }
        assert!(!tls.ends_within(RENEW_BEFORE));
        own.ensure().unwrap();
        assert_eq!(certificate(&own), first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&own.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_certificate_that_ends_soon_or_lacks_a_name_is_renewed_with_the_same_key_pair() {
        let (_home, own) = own();
        let pair = own.pair().unwrap();
        let mut ending = params(names()).unwrap();
        let (year, month, day) = date(Timestamp::now() + SignedDuration::from_hours(48)).unwrap();
        ending.not_after = date_time_ymd(year, month, day);
        let nameless = params(BTreeSet::from(["elsewhere".to_owned()])).unwrap();
        for old in [ending, nameless] {
            let old = old.self_signed(&pair).unwrap().pem();
            std::fs::write(&own.certificate, &old).unwrap();
            let before = own.loaded(&pair).unwrap();
            own.ensure().unwrap();
            let renewed = own.loaded(&own.pair().unwrap()).unwrap();
            assert_ne!(certificate(&own), old);
            assert!(!renewed.ends_within(RENEW_BEFORE) && renewed.names("localhost"));
            assert_eq!(renewed.pin(), before.pin());
        }
    }

    #[test]
    fn a_damaged_key_is_not_replaced_in_silence() {
        let (_home, own) = own();
        own.ensure().unwrap();
        std::fs::write(&own.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
        let error = format!("{:#}", own.ensure().unwrap_err());
        assert!(error.contains("tls-key.pem") && error.contains("join anew"), "{error}");
    }
}
