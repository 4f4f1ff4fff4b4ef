//! Leases while the database answers and can't write, or takes long: owed, acknowledged, paid.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::lan::{Host, Lan, wait_for};
use super::postgres::Database;
use super::raw::{ACK, Answer, DISCOVER, Message, NAK, RELEASE, REQUEST, Talker};
use super::server::{Server, Settings, client, prepare, range};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SOON: Duration = Duration::from_secs(20);

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0x78, 0, n]
}

struct Site {
    /// Held for its namespaces.
    _lan: Lan,
    srv: Host,
    database: Database,
    settings: Settings,
    talker: Talker,
}

impl Site {
    fn new(sole: bool) -> Self {
        let lan = Lan::new();
        let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
        let database = Database::new();
        let reserved = client(
            "52:54:00:78:00:09",
            "pc-9",
            Some(Ipv4Addr::new(10, 77, 0, 9)),
        );
        prepare(
            &database,
            &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
            &[reserved],
        );
        let settings = Settings {
            sole,
            ..Settings::default()
        };
        Self {
            srv,
            talker: Talker::new(&cli),
            database,
            settings,
            _lan: lan,
        }
    }

    fn start(&self) -> Server {
        Server::start(&self.srv, &self.database, &self.settings)
    }

    /// The database answers, and has no place for leases; and has it again.
    fn no_leases(&self) {
        self.database
            .query("alter table leases rename to elsewhere");
    }

    fn leases_again(&self) {
        self.database
            .query("alter table elsewhere rename to leases");
    }

    /// `address|state` of a machine.
    fn row(&self, n: u8) -> String {
        self.database.query(&format!(
            "select host(address), state from leases where mac = '52:54:00:78:00:{n:02x}'"
        ))
    }

    fn release(&self, n: u8, address: Ipv4Addr) {
        let mut release = Message::new(RELEASE, mac(n), 900).of_server(SERVER);
        release.ciaddr = address;
        self.talker.send(&release.bytes());
    }
}

/// Option 51 of an answer, seconds.
fn lasts(answer: &Answer) -> u32 {
    u32::from_be_bytes(answer.options[&51].as_slice().try_into().unwrap())
}

fn paid(server: &Server) {
    wait_for("all is paid", SOON, || {
        (server.metric("leases_owing") == 0).then_some(())
    });
}

#[test]
fn what_the_database_cannot_write_is_owed_and_paid_in_order() {
    let mut site = Site::new(true);
    site.settings.keep_percent = 0;
    let server = site.start();
    let before = site.talker.lease(mac(1), 1).unwrap();
    site.no_leases();
    let renewed = site.talker.lease(mac(1), 2).unwrap();
    assert_eq!((renewed.kind, renewed.address), (ACK, before.address));
    let second = site.talker.lease(mac(2), 3).unwrap();
    let third = site.talker.lease(mac(3), 4).unwrap();
    site.release(2, second.address);
    wait_for("the release is owed", SOON, || {
        (server.metric("leases_owing") == 4).then_some(())
    });
    // The book knows all of it: nobody gets the third one's address, and it is its own still.
    assert_eq!(site.talker.lease(mac(3), 5).unwrap().address, third.address);
    site.leases_again();
    paid(&server);
    assert_eq!(site.row(1), format!("{}|active", before.address));
    assert_eq!(site.row(2), format!("{}|released", second.address));
    assert_eq!(site.row(3), format!("{}|active", third.address));
    assert_eq!(server.metric("leases_set_aside_total"), 0);
    // And now directly again.
    let owed = server.metric("leases_owed_total");
    site.talker.lease(mac(4), 6).unwrap();
    assert_eq!(server.metric("leases_owed_total"), owed);
}

#[test]
fn a_lease_that_is_durable_is_acknowledged_for_what_is_left_of_it() {
    let site = Site::new(true);
    let server = site.start();
    let counts = || {
        [
            "leases_kept_total",
            "leases_stored_total",
            "leases_owed_total",
        ]
        .map(|name| server.metric(name))
    };
    let begins = |n: u8| {
        site.database.query(&format!(
            "select extract(epoch from starts_at) from leases where mac = '52:54:00:78:00:{n:02x}'"
        ))
    };
    let first = site.talker.lease(mac(1), 1).unwrap();
    let (begun, length) = (begins(1), lasts(&first));
    assert_eq!(counts(), [0, 1, 0]);
    // The loader of the same boot asks, and who remembers its address, while nothing can be written.
    site.no_leases();
    std::thread::sleep(Duration::from_millis(1100));
    let again = site.talker.lease_as(mac(1), 2, Message::pxe).unwrap();
    assert_eq!(again.address, first.address);
    assert!(
        (length - 30..=length - 2).contains(&lasts(&again)),
        "{}",
        lasts(&again)
    );
    let remembers = Message::new(REQUEST, mac(1), 3).requesting(first.address);
    assert_eq!(site.talker.ask(&remembers).unwrap().kind, ACK);
    assert_eq!(counts(), [2, 1, 0]);
    site.leases_again();
    // One that would be another is written.
    let named = |message: Message| message.with(12, b"pc-one");
    let named = site.talker.lease_as(mac(1), 4, named).unwrap();
    assert_eq!(lasts(&named), length);
    assert_eq!(counts(), [2, 2, 0]);
    assert_ne!(begins(1), begun);
    // So is one that was given back, or that somebody took out of the table.
    site.release(1, first.address);
    wait_for("it is given back", SOON, || {
        site.row(1).ends_with("released").then_some(())
    });
    assert_eq!(site.talker.lease(mac(1), 5).unwrap().address, first.address);
    assert_eq!(counts(), [2, 3, 0]);
    site.database.query("delete from leases");
    wait_for("the table is heard of", SOON, || {
        site.talker.lease(mac(1), 6);
        (site.row(1) == format!("{}|active", first.address)).then_some(())
    });
}

#[test]
fn where_servers_share_a_database_each_ack_is_written() {
    let site = Site::new(false);
    let server = site.start();
    let first = site.talker.lease(mac(9), 1).unwrap();
    let again = site.talker.lease(mac(9), 2).unwrap();
    assert_eq!(
        (again.address, lasts(&again)),
        (first.address, lasts(&first))
    );
    assert_eq!(server.metric("leases_stored_total"), 2);
    assert_eq!(server.metric("leases_kept_total"), 0);
}

#[test]
fn a_server_that_ends_meanwhile_pays_at_its_next_start() {
    let site = Site::new(true);
    let server = site.start();
    site.talker.lease(mac(1), 1).unwrap();
    site.no_leases();
    let owed = site.talker.lease(mac(2), 2).unwrap();
    server.stop();
    // It starts without a word of the database on leases, and knows them.
    let server = site.start();
    let again = site.talker.lease(mac(2), 3).unwrap();
    assert_eq!(again.address, owed.address);
    let other = site.talker.lease(mac(3), 4).unwrap();
    assert_ne!(other.address, owed.address);
    site.leases_again();
    paid(&server);
    assert_eq!(site.row(2), format!("{}|active", owed.address));
    assert_eq!(site.row(3), format!("{}|active", other.address));
}

#[test]
fn what_no_longer_fits_is_set_aside_and_holds_nothing_up() {
    let site = Site::new(true);
    let server = site.start();
    site.no_leases();
    let lost = site.talker.lease(mac(1), 1).unwrap();
    let fine = site.talker.lease(mac(2), 2).unwrap();
    // Somebody writes the address to another machine meanwhile, by hand.
    site.database.query(&format!(
        "insert into elsewhere (address, range_id, network, mac, state, starts_at, length_seconds, server_id)
         select '{}', id, network, '52:54:00:78:00:77', 'active', now(), 3600, '{}' from network_ranges",
        lost.address, site.settings.server_id
    ));
    site.leases_again();
    paid(&server);
    assert_eq!(server.metric("leases_set_aside_total"), 1);
    assert_eq!(site.row(1), "");
    assert_eq!(site.row(2), format!("{}|active", fine.address));
    // The book follows the database: the machine gets another address.
    wait_for("it is offered another address", SOON, || {
        let offer = site.talker.ask(&Message::new(DISCOVER, mac(1), 3))?;
        (offer.address != lost.address).then_some(())
    });
    let other = site.talker.lease(mac(1), 4).unwrap();
    wait_for("it is stored", SOON, || {
        (site.row(1) == format!("{}|active", other.address)).then_some(())
    });
}

#[test]
fn a_slow_database_is_not_waited_for() {
    let site = Site::new(true);
    let server = site.start();
    site.talker.lease(mac(1), 1).unwrap();
    let blocker = {
        let database = site.database.clone();
        std::thread::spawn(move || {
            database
                .query("begin; lock table leases in exclusive mode; select pg_sleep(4); commit");
        })
    };
    let locked = "select count(*) from pg_locks where mode = 'ExclusiveLock' and granted and relation = 'leases'::regclass";
    wait_for("the table is locked", SOON, || {
        (site.database.query(locked) == "1").then_some(())
    });
    for n in 2..6 {
        assert_eq!(site.talker.lease(mac(n), u32::from(n)).unwrap().kind, ACK);
    }
    assert_eq!(
        site.database.query(locked),
        "1",
        "all this while it was locked"
    );
    blocker.join().unwrap();
    paid(&server);
    for n in 1..6 {
        assert!(site.row(n).ends_with("|active"), "{n}");
    }
}

/// Waits until a server has addresses of its own that it may use.
fn claimed(server: &Server) -> u64 {
    wait_for("addresses are claimed", SOON * 2, || {
        Some(server.metric("claimed_addresses")).filter(|count| *count > 0)
    })
}

#[test]
fn where_servers_share_a_database_each_goes_on_with_its_own_addresses() {
    let site = Site::new(false);
    let server = site.start();
    // One that was leased before anything was claimed: made this server's own afterwards.
    let first = site.talker.lease(mac(1), 1).unwrap();
    let own = claimed(&server);
    assert!(own >= 12, "a quarter of 49 or more: {own}");
    wait_for("the lease lies in a block that is used", SOON * 2, || {
        let all = site
            .database
            .query("select coalesce(sum(addresses), 0) from lease_block_status");
        let inside = site.database.query(&format!(
            "select count(*) from lease_block_status where '{}' between first_address and last_address and leased > 0",
            first.address
        ));
        (inside == "1" && all == server.metric("claimed_addresses").to_string()).then_some(())
    });
    // Another server has the rest.
    site.database.query(&format!(
        "insert into servers (id, name, version, claims_until) values ('{0}', 'other', '0', now() + interval '1 day');
         insert into lease_blocks (range_id, first_address, last_address, server_id)
             select r.id, a, a, '{0}' from network_ranges r, (select '10.77.0.50'::inet + n as a from generate_series(0, 49) n) x
             where not exists (select 1 from lease_blocks b where a between b.first_address and b.last_address)",
        uuid::Uuid::new_v4()
    ));
    site.no_leases();
    let reserved = site.talker.lease(mac(9), 2).unwrap();
    assert_eq!(reserved.address, Ipv4Addr::new(10, 77, 0, 9));
    let second = site.talker.lease(mac(2), 3).unwrap();
    let again = site.talker.lease(mac(1), 4).unwrap();
    assert_eq!((again.kind, again.address), (ACK, first.address));
    assert!(server.metric("leases_owed_total") >= 3);
    site.leases_again();
    paid(&server);
    assert_eq!(site.row(2), format!("{}|active", second.address));
    assert_eq!(site.row(9), "10.77.0.9|active");
    assert_eq!(server.metric("leases_set_aside_total"), 0);
    let mine = format!(
        "select count(*) from lease_blocks where server_id = '{}' and '{}' between first_address and last_address",
        site.settings.server_id, second.address
    );
    assert_eq!(site.database.query(&mine), "1");
    // It stops in good order, and so gives its claim up.
    server.stop();
    let held = format!(
        "select count(*) from servers where id = '{}' and claims_until is null",
        site.settings.server_id
    );
    assert_eq!(site.database.query(&held), "1");
    assert!(!site.settings.journals.path().join("claims.json").exists());
}

#[test]
fn what_others_have_claimed_is_theirs() {
    let site = Site::new(false);
    let other = uuid::Uuid::new_v4();
    // All but four addresses.
    site.database.query(&format!(
        "insert into servers (id, name, version, claims_until) values ('{other}', 'other', '0', now() + interval '1 day');
         insert into lease_blocks (range_id, first_address, last_address, server_id)
             select id, '10.77.0.54', '10.77.0.99', '{other}' from network_ranges"
    ));
    let server = site.start();
    // It may have been offered others before the server knew; by the database it gets none of them.
    for n in 1..=4 {
        let leased = wait_for("it has an address", SOON * 2, || {
            site.talker.lease(mac(n), u32::from(n) * 10)
        });
        assert!(leased.address < Ipv4Addr::new(10, 77, 0, 54), "{leased:?}");
    }
    assert!(
        site.talker
            .ask(&Message::new(DISCOVER, mac(5), 99))
            .is_none()
    );
    // That server is gone for good.
    site.database
        .query(&format!("delete from servers where id = '{other}'"));
    wait_for("the fifth has one", SOON * 2, || {
        site.talker.lease(mac(5), 100)
    });
    server.stop();
}

/// RFC 2131 section 3.1: a NAK makes a machine give up the address that it works with. Another server
/// has moved it, and word of that has not come: the row is read before it is refused, and where
/// it can't be read, nothing is said.
#[test]
fn a_machine_is_not_refused_what_another_server_has_given_it() {
    let site = Site::new(false);
    let server = site.start();
    let first = site.talker.lease(mac(1), 1).unwrap().address.octets()[3];
    // Others of the pool.
    let later = |n: u8| Ipv4Addr::new(10, 77, 0, 50 + (first - 50 + n) % 50);
    let moved = |n: u8| {
        let address = later(n);
        site.database.query(&format!(
            "alter table leases disable trigger user;
             update leases set address = '{address}', starts_at = now() where mac = '52:54:00:78:00:01';
             alter table leases enable trigger user"
        ));
        address
    };
    let remembers = |xid, address| {
        let request = Message::new(REQUEST, mac(1), xid).requesting(address);
        site.talker.ask(&request)
    };
    let second = moved(1);
    let told = remembers(2, second).unwrap();
    assert_eq!((told.kind, told.address), (ACK, second));
    // What nobody gave it, it is refused.
    let told = remembers(3, later(2)).unwrap();
    assert_eq!(told.kind, NAK);

    let third = moved(3);
    site.no_leases();
    assert!(remembers(4, third).is_none());
    assert_eq!(server.metric("silences_total{reason=\"unconfirmed\"}"), 1);
    site.leases_again();
    let told = wait_for("it hears of its lease", SOON, || remembers(5, third));
    assert_eq!((told.kind, told.address), (ACK, third));
    server.stop();
}
