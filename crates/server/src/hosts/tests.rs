use super::*;

fn patterns(list: &[&str]) -> Vec<HostPattern> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// A server that listens on `bound` and is configured with these hosts and origins.
fn gate(bound: &str, hosts: &[&str], origins: &[&str]) -> Gate {
    let bound = Some(bound.parse().unwrap());
    let machine = ["Box.Example".to_owned(), "not a name".to_owned(), "*".to_owned()];
    let origins: Vec<_> = origins.iter().map(|text| text.parse().unwrap()).collect();
    let hosts = AllowedHosts::new(&patterns(hosts), bound, &machine, None);
    Gate::new(hosts, AllowedOrigins::new(&origins))
}

fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
}

fn for_host(gate: &Gate, host: &str) -> Result<(), Forbidden> {
    gate.check(&headers(&[(header::HOST, host)]), &Uri::from_static("/ws"))
}

fn from_page(gate: &Gate, host: &str, origin: &str) -> Result<(), Forbidden> {
    let headers = headers(&[(header::HOST, host), (header::ORIGIN, origin)]);
    gate.check(&headers, &Uri::from_static("/ws"))
}

#[test]
fn a_server_on_this_machine_goes_by_its_loopback_names_and_the_machines_own() {
    let gate = gate("127.0.0.1", &[], &[]);
    for host in [
        "localhost:5000",
        "LocalHost",
        "localhost.",
        "127.0.0.1:5000",
        "127.8.9.10",
        "[::1]:5000",
        "[::ffff:127.0.0.1]",
        "box.example",
        "BOX.EXAMPLE:1",
    ] {
        assert_eq!(for_host(&gate, host), Ok(()), "{host}");
    }
}

#[test]
fn a_name_that_somebody_makes_resolve_to_this_machine_is_refused() {
    let gate = gate("127.0.0.1", &[], &[]);
    for host in [
        "evil.example:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "2130706433",
        "0x7f.1",
        "127.1",
        "0.0.0.0",
        "192.0.2.7",
    ] {
        let refused = for_host(&gate, host).unwrap_err();
        assert!(matches!(refused, Forbidden::UnknownHost(_)), "{host}: {refused}");
    }
    let refused = for_host(&gate, "evil.example:5000").unwrap_err().to_string();
    assert!(refused.contains("'evil.example'") && refused.contains("allowed_hosts"), "{refused}");
    // A rebound page is of the same origin as the server, as far as its browser knows.
    assert!(from_page(&gate, "evil.example:5000", "http://evil.example:5000").is_err());
}

#[test]
fn the_address_that_is_listened_on_is_a_host_and_with_all_of_them_every_address() {
    let one = gate("192.0.2.7", &[], &[]);
    assert_eq!(for_host(&one, "192.0.2.7:5000"), Ok(()));
    assert!(for_host(&one, "192.0.2.8:5000").is_err());
    for all in ["0.0.0.0", "::"] {
        let all = gate(all, &[], &[]);
        assert_eq!(for_host(&all, "192.0.2.8:5000"), Ok(()));
        assert_eq!(for_host(&all, "[2001:db8::1]"), Ok(()));
        assert!(for_host(&all, "evil.example").is_err());
    }
}

#[test]
fn configured_hosts_are_admitted_and_a_star_admits_every_host_that_can_be_read() {
    let some = gate("127.0.0.1", &["agents.example", "*.lab.example", "2001:db8::1"], &[]);
    for host in ["agents.example", "Agents.Example.:443", "a.b.lab.example", "[2001:DB8::1]:1"] {
        assert_eq!(for_host(&some, host), Ok(()), "{host}");
    }
    assert!(for_host(&some, "lab.example").is_err());
    let any = gate("127.0.0.1", &["*"], &[]);
    assert_eq!(for_host(&any, "whatever.example"), Ok(()));
    assert_eq!(for_host(&any, "what ever"), Err(Forbidden::UnreadableHost));
}

#[test]
fn the_names_of_the_certificate_are_hosts() {
    let is_certified: IsCertified = Box::new(|name| name == "tls.example" || name == "192.0.2.9");
    let hosts = AllowedHosts::new(&[], None, &[], Some(is_certified));
    let gate = Gate::new(hosts, AllowedOrigins::new(&[]));
    assert_eq!(for_host(&gate, "tls.example.:8443"), Ok(()));
    assert_eq!(for_host(&gate, "192.0.2.9:8443"), Ok(()));
    assert!(for_host(&gate, "other.example").is_err());
}

#[test]
fn a_request_names_one_host_and_no_tricks_are_played_with_it() {
    let gate = gate("127.0.0.1", &[], &[]);
    let path = Uri::from_static("/api/health");
    assert_eq!(gate.check(&HeaderMap::new(), &path), Err(Forbidden::NoHost));
    let two = headers(&[(header::HOST, "localhost"), (header::HOST, "localhost")]);
    assert_eq!(gate.check(&two, &path), Err(Forbidden::RepeatedHost));
    let long = "localhost.".repeat(30);
    for host in ["", "localhost@evil.example", "evil.example@localhost", "localhost/x", &long] {
        assert_eq!(for_host(&gate, host), Err(Forbidden::UnreadableHost), "{host}");
    }
    let binary = HeaderValue::from_bytes(b"localhost\xff").unwrap();
    let binary = HeaderMap::from_iter([(header::HOST, binary)]);
    assert_eq!(gate.check(&binary, &path), Err(Forbidden::UnreadableHost));
}

#[test]
fn a_target_in_absolute_form_names_the_host_too() {
    let gate = gate("127.0.0.1", &[], &[]);
    let check = |headers: &[(HeaderName, &str)], uri: &'static str| {
        gate.check(&self::headers(headers), &Uri::from_static(uri))
    };
    assert_eq!(check(&[], "http://localhost:5000/api"), Ok(()));
    assert_eq!(check(&[(header::HOST, "127.0.0.1")], "http://localhost:5000/api"), Ok(()));
    let evil = Err(Forbidden::UnknownHost("evil.example".to_owned()));
    assert_eq!(check(&[(header::HOST, "localhost")], "http://evil.example/api"), evil);
    assert_eq!(check(&[(header::HOST, "evil.example")], "http://localhost/api"), evil);
    let user = check(&[], "http://localhost@evil.example/api");
    assert_eq!(user, Err(Forbidden::UnreadableHost));
}

#[test]
fn a_program_sends_no_origin_and_passes_and_so_does_the_servers_own_page() {
    let gate = gate("0.0.0.0", &["agents.example"], &[]);
    assert_eq!(for_host(&gate, "agents.example"), Ok(()));
    for (host, origin) in [
        ("localhost:5000", "http://localhost:5000"),
        ("LOCALHOST:5000", "HTTP://localhost:5000"),
        ("agents.example", "https://agents.example"),
        ("agents.example:443", "https://agents.example"),
        ("agents.example", "http://agents.example:80"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("192.0.2.7:5000", "http://192.0.2.7:5000"),
    ] {
        assert_eq!(from_page(&gate, host, origin), Ok(()), "{host} {origin}");
    }
}

#[test]
fn a_page_of_another_origin_is_refused_also_when_it_is_next_door() {
    let gate = gate("127.0.0.1", &[], &[]);
    for origin in [
        "https://evil.example",
        "http://localhost:3000",
        "http://127.0.0.1:5000",
        "http://localhost",
        "https://localhost",
        "ws://localhost:5000",
        "app://localhost:5000",
        "http://localhost.evil.example:5000",
    ] {
        let refused = from_page(&gate, "localhost:5000", origin).unwrap_err();
        assert_eq!(refused, Forbidden::UnknownOrigin(origin.to_owned()));
        assert!(refused.to_string().contains("allowed_origins"), "{refused}");
    }
    for origin in ["null", "", "file://", "localhost:5000", "http://localhost:5000/", "http://a b"]
    {
        let refused = from_page(&gate, "localhost:5000", origin);
        assert_eq!(refused, Err(Forbidden::UnreadableOrigin), "{origin}");
    }
    let own = "http://localhost:5000";
    let twice = [(header::HOST, "localhost:5000"), (header::ORIGIN, own), (header::ORIGIN, own)];
    let refused = gate.check(&headers(&twice), &Uri::from_static("/ws"));
    assert_eq!(refused, Err(Forbidden::RepeatedOrigin));
}

#[test]
fn configured_origins_are_admitted_and_a_star_admits_every_page() {
    let some = gate("127.0.0.1", &[], &["https://Dash.example/", "tauri://localhost"]);
    assert_eq!(from_page(&some, "localhost:5000", "https://dash.example:443"), Ok(()));
    assert_eq!(from_page(&some, "localhost:5000", "tauri://localhost"), Ok(()));
    assert!(from_page(&some, "localhost:5000", "http://dash.example").is_err());
    assert!(from_page(&some, "localhost:5000", "https://dash.example:8443").is_err());
    assert!(from_page(&some, "evil.example", "https://dash.example").is_err(), "hosts still count");
    let any = gate("127.0.0.1", &[], &["*"]);
    assert_eq!(from_page(&any, "localhost:5000", "https://evil.example"), Ok(()));
    assert_eq!(from_page(&any, "localhost:5000", "null"), Ok(()));
}
