//! Who may what: generated from the list of routes, so that a new route is in it by itself.

use dls::admin::{Access, routes};

use super::world::World;

/// A path that matches a route.
fn concrete(path: &str) -> String {
    path.split('/')
        .map(|segment| {
            if segment.starts_with('{') {
                "x"
            } else {
                segment
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_with_no_token_a_wrong_one_and_the_right_one() {
    let world = World::new().await;
    let wrong = "0".repeat(64);
    let almost = format!("{}x", &world.token[..63]);
    let long = format!("{}0", world.token);
    for route in routes() {
        let path = concrete(route.path);
        let refused: Vec<Option<String>> = vec![
            None,
            Some(format!("Bearer {wrong}")),
            Some(format!("Bearer {almost}")),
            Some(format!("Bearer {long}")),
            Some(format!("Basic {}", world.token)),
            Some(world.token.clone()),
            Some("Bearer ".to_owned()),
            Some("Bearer".to_owned()),
        ];
        for given in refused {
            let mut request = world.bare(route.method, &path);
            if let Some(value) = &given {
                request = request.header("authorization", value);
            }
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            match route.access {
                Access::Public => assert_eq!(status, 200, "{route:?} {given:?}"),
                Access::Admin => {
                    assert_eq!(status, 401, "{route:?} {given:?}");
                    assert_eq!(response.headers()["www-authenticate"], "Bearer");
                    let body: serde_json::Value = response.json().await.unwrap();
                    assert!(body["error"].as_str().unwrap().len() > 10);
                    assert!(!body.to_string().contains(&world.token));
                }
            }
        }
        let twice = world
            .request(route.method, &path)
            .header("authorization", format!("Bearer {}", world.token));
        let status = twice.send().await.unwrap().status().as_u16();
        if route.access == Access::Admin {
            assert_eq!(status, 401, "{route:?} with two tokens");
        }
        let right = world.request(route.method, &path).send().await.unwrap();
        let status = right.status().as_u16();
        assert!(status != 401 && status < 500, "{route:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_route_is_told_only_to_those_let_in() {
    let world = World::new().await;
    for (method, path, known) in [
        ("GET", "/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/images/a/b", 404),
        ("GET", "/api/v1/../../etc/passwd", 404),
        ("POST", "/healthz", 405),
        ("DELETE", "/api/v1/clients", 405),
        ("TRACE", "/api/v1/clients", 405),
    ] {
        let out = world.bare(method, path).send().await.unwrap();
        assert_eq!(out.status().as_u16(), 401, "{method} {path}");
        let inside = world.request(method, path).send().await.unwrap();
        assert_eq!(inside.status().as_u16(), known, "{method} {path}");
        assert_eq!(inside.headers()["content-type"], "application/json");
        assert_eq!(inside.headers()["x-content-type-options"], "nosniff");
    }
}
