//! Which HTTP proxy stands between us and a server, by the variables that everybody uses for it:
//! `HTTPS_PROXY` for a server behind TLS, `HTTP_PROXY` for a plain one, else `ALL_PROXY`; `NO_PROXY`
//! names what is reached without one. Each also in lower case.

use anyhow::{Context, bail};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use link::{Proxy, ServerUrl};
use secrecy::SecretString;

/// The port of a proxy that does not say.
const DEFAULT_PORT: u16 = 80;

/// The proxy on the way to a server, if any. A server on this machine needs none.
///
/// # Errors
/// When a variable names something that is no HTTP proxy. Its value is not repeated: it may hold a
/// password.
pub(crate) fn proxy_to(server: &ServerUrl) -> anyhow::Result<Option<Proxy>> {
    choose(server, |name| std::env::var(name).ok())
}

fn choose(
    server: &ServerUrl,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Option<Proxy>> {
    let first = |names: &[&'static str]| {
        let set = names.iter().map(|name| (*name, variable(name).unwrap_or_default()));
        set.into_iter().find(|(_, value)| !value.trim().is_empty())
    };
    let own = match server.is_tls() {
        true => ["HTTPS_PROXY", "https_proxy"],
        false => ["HTTP_PROXY", "http_proxy"],
    };
    let Some((name, value)) = first(&own).or_else(|| first(&["ALL_PROXY", "all_proxy"])) else {
        return Ok(None);
    };
    let address = server.http("/").parse().context("the server's address")?;
    let builder = || Matcher::builder().all(value.trim().to_owned());
    let Some(found) = builder().build().intercept(&address) else {
        bail!("{name} is no address of a proxy; use http://HOST:PORT");
    };
    let (_, except) = first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if server.is_loopback() || builder().no(except).build().intercept(&address).is_none() {
        return Ok(None);
    }
    proxy(&found).with_context(|| name).map(Some)
}

fn proxy(found: &Intercept) -> anyhow::Result<Proxy> {
    let uri = found.uri();
    if let Some(scheme @ ("https" | "socks4" | "socks4a" | "socks5" | "socks5h")) = uri.scheme_str()
    {
        bail!("a proxy is spoken to by http:// only, not by {scheme}://");
    }
    let authorization = found.basic_auth().and_then(|value| value.to_str().ok());
    let host = uri.host().context("it names no host")?;
    Proxy::new(host, uri.port_u16().unwrap_or(DEFAULT_PORT), authorization.map(SecretString::from))
        .context("its host is none")
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn chosen(server: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
        let found = |asked: &str| variables.iter().find(|(name, _)| *name == asked);
        choose(&server.parse().unwrap(), |asked| found(asked).map(|(_, value)| (*value).to_owned()))
            .map_err(|error| format!("{error:#}"))
    }

    fn shown(server: &str, variables: &[(&str, &str)]) -> Option<String> {
        chosen(server, variables).unwrap().map(|proxy| proxy.to_string())
    }

    #[test]
    fn each_kind_of_server_has_its_variable_in_either_case() {
        let all = ("ALL_PROXY", "http://all:1");
        for (server, variable, other) in [
            ("wss://box", "HTTPS_PROXY", "HTTP_PROXY"),
            ("wss://box", "https_proxy", "http_proxy"),
            ("ws://box", "HTTP_PROXY", "HTTPS_PROXY"),
            ("http://box", "http_proxy", "https_proxy"),
        ] {
            let own = (variable, "http://own:3128");
            assert_eq!(
                shown(server, &[own, all]).as_deref(),
                Some("http://own:3128"),
                "{variable}"
            );
            let other = (other, "http://other:1");
            assert_eq!(shown(server, &[other, all]).as_deref(), Some("http://all:1"), "{variable}");
            assert_eq!(shown(server, &[other, (variable, "")]), None);
        }
        assert_eq!(
            shown("ws://box", &[("http_proxy", "[::1]:8")]).as_deref(),
            Some("http://[::1]:8")
        );
        assert_eq!(shown("ws://box", &[("http_proxy", "p")]).as_deref(), Some("http://p:80"));
    }

    #[test]
    fn what_is_near_is_reached_without_one() {
        let proxy = ("ALL_PROXY", "http://p:1");
        for server in ["localhost:5000", "127.0.0.1", "[::1]", "wss://localhost"] {
            assert_eq!(shown(server, &[proxy]), None, "{server}");
        }
        let no = ("no_proxy", "example.com, 10.0.0.0/8");
        for (server, is_through) in [
            ("ws://box.example.com", false),
            ("wss://example.com:7", false),
            ("ws://10.1.2.3:5000", false),
            ("ws://11.1.2.3:5000", true),
            ("ws://notexample.com", true),
        ] {
            assert_eq!(shown(server, &[proxy, no]).is_some(), is_through, "{server}");
        }
        assert_eq!(shown("ws://box", &[proxy, ("NO_PROXY", "*")]), None);
    }

    #[test]
    fn a_password_is_used_and_never_shown() {
        let proxy =
            chosen("wss://box", &[("HTTPS_PROXY", "http://ada:s%40crat@p:1")]).unwrap().unwrap();
        let value = proxy.authorization().unwrap().expose_secret();
        assert_eq!(value, "Basic YWRhOnNAY3JhdA==");
        assert!(!format!("{proxy} {proxy:?}").contains("crat"));
        for address in
            ["socks5://ada:s3crat@p:1", "https://ada:s3crat@p:1", "ada:s3crat@ p", "ftp://p"]
        {
            let error = chosen("wss://box", &[("ALL_PROXY", address)]).unwrap_err();
            assert!(error.contains("ALL_PROXY") && !error.contains("s3crat"), "{error}");
        }
    }
}
