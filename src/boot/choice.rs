//! Which server a machine gets its disk from: this one if it has it, else one that is alive and
//! has it. Pure; what is known of servers and replicas comes from the cache.

use uuid::Uuid;

use crate::model::{Server, Site};

/// Where a machine's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// On this server.
    Here,
    /// On that one, which is alive.
    There(&'a Server),
    /// On servers that are not alive.
    Away,
    /// On none.
    Nowhere,
}

/// Chooses. `here`: this server (`own`) has the disk or what it is made from; `home`: another
/// server keeps this client's own disk, which there is only once; `holders`: the servers that
/// have the version. Clients are spread over them, each always to the same one.
#[must_use]
pub fn choose<'a>(
    own: Uuid,
    client: Uuid,
    here: bool,
    home: Option<Uuid>,
    holders: &[Uuid],
    site: &'a Site,
) -> Place<'a> {
    let alive = |id: &Uuid| site.server(*id).filter(|server| server.alive);
    if let Some(home) = home.filter(|home| *home != own) {
        // A server that is in no row is gone for good, and the disk with it.
        match site.server(home) {
            Some(server) if server.alive => return Place::There(server),
            Some(_) => return Place::Away,
            None => {}
        }
    }
    if here {
        return Place::Here;
    }
    let others = holders.iter().filter(|id| **id != own);
    let able: Vec<&Server> = others.clone().filter_map(alive).collect();
    let turn = usize::try_from(client.as_u128() % able.len().max(1) as u128).unwrap_or(0);
    match able.get(turn) {
        Some(server) => Place::There(server),
        None if others.count() > 0 => Place::Away,
        None => Place::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Contact;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn site(alive: &[(u128, bool)]) -> Site {
        let server = |(n, alive): &(u128, bool)| Server {
            id: id(*n),
            name: format!("s{n}"),
            alive: *alive,
            contact: Contact::default(),
        };
        Site {
            servers: alive.iter().map(server).collect(),
            homes: Vec::new(),
        }
    }

    /// The number of the server that client `client` goes to from server 1, or a word.
    fn at(client: u128, here: bool, home: Option<u128>, holders: &[u128], site: &Site) -> String {
        let holders: Vec<Uuid> = holders.iter().copied().map(id).collect();
        match choose(id(1), id(client), here, home.map(id), &holders, site) {
            Place::Here => "here".to_owned(),
            Place::There(server) => server.name.clone(),
            Place::Away => "away".to_owned(),
            Place::Nowhere => "nowhere".to_owned(),
        }
    }

    #[test]
    fn who_has_it_is_asked_and_this_server_first() {
        let all = site(&[(1, true), (2, true), (3, true)]);
        assert_eq!(at(9, true, None, &[1, 2], &all), "here");
        assert_eq!(at(9, false, None, &[2], &all), "s2");
        assert_eq!(at(9, false, None, &[], &all), "nowhere");
        // A row of ours that is not true any more sends nobody in circles.
        assert_eq!(at(9, false, None, &[1], &all), "nowhere");
        // Spread, and each always to the same one.
        let of = |client| at(client, false, None, &[2, 3], &all);
        assert_eq!((of(10), of(11)), ("s2".to_owned(), "s3".to_owned()));
        assert_eq!(of(10), of(12));
    }

    #[test]
    fn nobody_is_sent_to_a_server_that_is_not_alive() {
        let some = site(&[(1, true), (2, false), (3, true)]);
        for client in 0..4 {
            assert_eq!(at(client, false, None, &[2, 3], &some), "s3");
        }
        assert_eq!(at(9, false, None, &[2], &some), "away");
        assert_eq!(at(9, false, None, &[7], &some), "away");
    }

    #[test]
    fn a_client_s_own_disk_is_where_it_is() {
        let some = site(&[(1, true), (2, true), (3, false)]);
        assert_eq!(at(9, true, Some(2), &[1, 2], &some), "s2");
        assert_eq!(at(9, true, Some(1), &[1, 2], &some), "here");
        assert_eq!(
            at(9, true, Some(3), &[1, 3], &some),
            "away",
            "no clean one instead"
        );
        assert_eq!(
            at(9, true, Some(8), &[1], &some),
            "here",
            "that one is gone"
        );
    }
}
