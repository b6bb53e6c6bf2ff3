//! What each command asks of the API, and what it prints: the real program against a control plane of
//! cardboard over real TLS.

#![allow(clippy::unwrap_used)]

mod mock;

use mock::Mock;
use sg_proto::api;

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_in_every_form() {
    let mock = Mock::start().await;
    let table = mock.run("gateway list").await;
    assert_eq!(table.code, 0, "{table:?}");
    assert_eq!(
        table.out,
        "NAME    ID     ENABLED  TOKEN EXPIRES\n\
         dev     g0123  yes      2030-03-17T17:46:40Z\n\
         second  g0123  no       2030-03-17T17:46:40Z\n"
    );
    assert_eq!(mock.run("gateway list -o name").await.out, "dev\nsecond\n");
    let wide = mock.run("-o wide gw list").await.out;
    assert!(
        lines(&wide)[0].ends_with(
            "GROUP    POLICY       RESUME TIME  ACL EDITS  CREATED               DESCRIPTION"
        ),
        "{wide}"
    );

    let json = mock.run("gateway list -o json").await.json();
    assert_eq!(json.as_object().unwrap().len(), 1);
    let first = &json["gateways"][0];
    assert_eq!(first["name"], "dev");
    assert_eq!(first["generation"], "1", "64-bit numbers are strings");
    assert_eq!(first["description"], "", "defaults are printed");
    assert_eq!(first["tokenExpireTime"], "2030-03-17T17:46:40Z");

    let yaml = mock.run("gateway get dev -o yaml").await.out;
    assert!(
        yaml.contains("createTime: \"2025-11-24T16:00:00Z\"\n"),
        "{yaml}"
    );
    assert!(yaml.contains("name: dev\n"), "{yaml}");
    assert!(yaml.contains("tokenRequired: true\n"), "{yaml}");
    assert!(
        yaml.contains("generation: \"1\"\n"),
        "a string stays one: {yaml}"
    );
    // Both pages were asked for, each time.
    assert_eq!(
        mock.asked()[..2],
        ["list gateways ", "list gateways page-2"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_security_token_is_shown_once_and_can_go_into_a_file() {
    let mock = Mock::start().await;
    let shown = mock.run("gateway create north -o json").await;
    assert_eq!(shown.json()["securityToken"], "sgt_secret");
    assert!(shown.err.contains("shown this once"), "{}", shown.err);
    let table = mock.run("gateway create north").await;
    assert!(
        table.out.ends_with("\nsecurity token: sgt_secret\n"),
        "{}",
        table.out
    );

    let file = mock.path("client.token");
    let saved = mock
        .run(&format!(
            "gateway token rotate dev --days 7 -o json --token-out {}",
            file.display()
        ))
        .await;
    assert_eq!(saved.json()["securityToken"], "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "sgt_new\n");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(!saved.err.contains("sgt_"), "{}", saved.err);

    let asked = mock.asked().len();
    let lost = mock
        .run("gateway create north --token-out /no/such/folder/t")
        .await;
    assert_eq!(lost.code, 1);
    assert_eq!(mock.asked().len(), asked, "nothing was created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_names_would_not_show_is_not_made() {
    let mock = Mock::start().await;
    for command in [
        "gateway create north",
        "gateway token rotate dev",
        "token create ci --role viewer",
    ] {
        let refused = mock.run(&format!("{command} -o name")).await;
        assert_eq!(
            (refused.code, refused.err.as_str()),
            (
                2,
                "error: -o name cannot show the token; add --token-out FILE (USAGE)\n"
            ),
            "{command}"
        );
        assert_eq!(mock.asked(), [""; 0], "{command}");
    }
    let file = mock.path("new.token");
    let saved = mock
        .run(&format!(
            "gateway token rotate dev -o name --token-out {}",
            file.display()
        ))
        .await;
    assert_eq!((saved.code, saved.out.as_str()), (0, "dev\n"), "{saved:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "sgt_new\n");
    let tokenless = mock.run("gateway create north --no-token -o name").await;
    assert_eq!((tokenless.code, tokenless.out.as_str()), (0, "north\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_replaces_only_its_own_kind() {
    let mock = Mock::start().await;
    let file = mock.path("plant.token");
    let out = file.display();
    for (held, what) in [
        ("sgt_old\n", "a security token (sgt_)"),
        ("sga_old\n", "an admin token (sga_)"),
        ("notes\n", "something else"),
        ("sgj_old and notes\n", "something else"),
    ] {
        std::fs::write(&file, held).unwrap();
        let refused = mock
            .run(&format!("node token create --token-out {out}"))
            .await;
        assert_eq!(refused.code, 1, "{refused:?}");
        assert_eq!(
            refused.err,
            format!("error: {out} holds {what}; choose another file (LOCAL)\n")
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), held);
    }
    assert_eq!(mock.asked(), [""; 0], "no token was made");
    for held in ["sgj_old\n", "\n", ""] {
        std::fs::write(&file, held).unwrap();
        let replaced = mock
            .run(&format!("node token create --token-out {out}"))
            .await;
        assert_eq!(replaced.code, 0, "{replaced:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "sgj_secret\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_use_the_newest_version_and_try_again_when_somebody_was_faster() {
    let mock = Mock::start().await;
    mock.script.lock().unwrap().conflicts = 2;
    let run = mock.run("gateway disable dev -o name").await;
    assert_eq!((run.code, run.out.as_str()), (0, "dev\n"), "{}", run.err);
    let round = [
        "get gateway gateways/dev",
        "disable gateway e1 gateways/dev",
    ];
    assert_eq!(mock.asked(), [round, round, round].concat());

    // With a version of the caller's there is one attempt.
    mock.script.lock().unwrap().conflicts = 1;
    let run = mock.run("gateway enable dev --etag old").await;
    assert_eq!(run.code, 5);
    assert!(run.err.contains("(ETAG_MISMATCH)"), "{}", run.err);
    assert_eq!(
        mock.asked().last().unwrap(),
        "enable gateway old gateways/dev"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_names_exactly_the_fields_that_were_given() {
    let mock = Mock::start().await;
    mock.run("gateway update dev --policy least-loaded --token-required false")
        .await;
    mock.run("destination update dev/pg --resource db:5433 --idle-timeout 5m")
        .await;
    let asked = mock.asked();
    assert_eq!(
        asked[1],
        "update gateway policy,token_required e1 gateways/dev"
    );
    assert_eq!(
        asked[3],
        "update destination idle_timeout,resource_host,resource_port gateways/dev/destinations/pg"
    );
    assert_eq!(mock.run("gateway update dev").await.code, 2);
    assert_eq!(mock.run("destination update dev/pg --wait").await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_prints_data_only_for_scripts() {
    let mock = Mock::start().await;
    let table = mock.run("destination delete dev/pg").await;
    assert_eq!((table.code, table.out.as_str()), (0, ""));
    assert_eq!(table.err, "destination dev/pg deleted\n");
    let json = mock.run("gateway delete dev --cascade -o json").await;
    assert_eq!(json.json()["id"], "g0123");
    assert!(
        mock.asked()
            .contains(&"delete destination e3 gateways/dev/destinations/pg".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn destinations_and_what_the_nodes_say() {
    let mock = Mock::start().await;
    let run = mock
        .run("destination create dev/pg --protocol tcp --resource 10.0.0.5:5432")
        .await;
    assert_eq!(
        run.out,
        "NAME  PROTOCOL  LISTEN              RESOURCE       STATE\n\
         pg    tcp       node.example:15000  10.0.0.5:5432  pending\n"
    );
    mock.run("destination create dev/in --kind cloud --client-port 7000 --resource web:80")
        .await;
    assert_eq!(
        mock.asked(),
        [
            "create on-premises tcp 10.0.0.5:5432 in gateways/dev/pg",
            "create cloud tcp web:80 in gateways/dev/in"
        ]
    );
    let get = mock.run("destination get dev/pg").await.out;
    assert_eq!(
        lines(&get)[3..],
        [
            "NODE    CONNECTED  APPLIED  STATE    REASON  ADDRESS  MESSAGE",
            "node-1  yes        2        pending  -       -        -"
        ]
    );
    let json = mock.run("destination get dev/pg -o json").await.json();
    assert_eq!(json["cloudPort"], 15000);
    assert_eq!(json["status"]["nodes"][0]["generationApplied"], "2");
    assert_eq!(mock.run("dest list dev -o name").await.out, "dev/pg\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_not_called_ready_and_udp_has_its_own_idle_time() {
    let mock = Mock::start().await;
    let node = |state: &str| api::DestinationNodeStatus {
        connected: true,
        state: state.to_owned(),
        ..Default::default()
    };
    for (protocol, state, (ready, applied), shown, idle) in [
        ("udp", "listening", (true, true), "ready", "60s"),
        ("tcp", "disabled", (false, true), "disabled", "never"),
        ("tcp", "listening", (false, false), "pending", "never"),
        // As a control plane of an older version says it.
        ("udp", "listening", (true, false), "ready", "60s"),
        ("tcp", "disabled", (true, false), "disabled", "never"),
    ] {
        mock.script.lock().unwrap().destination = Some(api::Destination {
            protocol: protocol.to_owned(),
            status: Some(api::DestinationStatus {
                ready,
                applied,
                nodes: vec![node(state)],
                clients: vec![],
            }),
            ..mock::services::destination()
        });
        let wide = mock.run("destination get dev/pg -o wide").await.out;
        let cells: Vec<&str> = lines(&wide)[1].split_whitespace().collect();
        assert_eq!((cells[4], cells[9]), (shown, idle), "{wide}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_do_not_count_are_warned_of() {
    let mock = Mock::start().await;
    let warning = "warning: dev/pg admits everybody; sgctl destination update dev/pg --restrict makes the rules count\n";
    let create = "destination create dev/pg --resource db:1";
    for (command, expected) in [
        ("destination source add dev/pg 10.0.0.5".to_owned(), warning),
        (
            "destination update dev/pg --allow-source 10.0.0.5".to_owned(),
            warning,
        ),
        (format!("{create} --allow-source 10.0.0.5"), warning),
        (format!("{create} --allow-source 10.0.0.5 --restrict"), ""),
        (format!("{create} --allow-source none"), ""),
        (create.to_owned(), ""),
    ] {
        let run = mock.run(&format!("{command} -o name")).await;
        assert_eq!((run.code, run.err.as_str()), (0, expected), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_returns_when_the_generation_is_applied_and_not_before() {
    let mock = Mock::start().await;
    let state = |generation, applied| api::Destination {
        generation,
        name: "pg".into(),
        status: Some(api::DestinationStatus {
            clients: vec![],
            // It may be disabled.
            ready: false,
            applied,
            nodes: vec![api::DestinationNodeStatus {
                node: "node-1".into(),
                connected: true,
                state: "failed".into(),
                reason: "address-in-use".into(),
                ..Default::default()
            }],
        }),
        ..Default::default()
    };
    // An older generation that is applied proves nothing.
    mock.script.lock().unwrap().destination_states =
        vec![state(2, true), state(3, false), state(3, true)];
    let run = mock
        .run("destination create dev/pg --resource db:1 --wait -o json")
        .await;
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.json()["generation"], "3");

    mock.script.lock().unwrap().destination_states = vec![state(3, false)];
    let run = mock
        .run("destination enable dev/pg --wait --timeout 1s")
        .await;
    assert_eq!((run.code, run.out.as_str()), (6, ""));
    assert_eq!(
        run.err,
        "error: destination dev/pg is stored, but is not served by every node (NOT_READY)\n\
         cause: node node-1: failed, generation 0 applied, address-in-use\n\
         try: sgctl destination get dev/pg\n"
    );

    // A group that nobody is in is named, for it may be a slip.
    let alone = api::Destination {
        status: Some(api::DestinationStatus::default()),
        ..state(3, false)
    };
    {
        let mut script = mock.script.lock().unwrap();
        script.destination_states = vec![alone.clone()];
        script.destination = Some(alone);
    }
    let run = mock
        .run("destination enable dev/pg --wait --timeout 1s")
        .await;
    assert!(
        run.err.contains(
            "cause: no node of group default has joined; sgctl node list -o wide shows groups\n"
        ),
        "{}",
        run.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn access_control_and_its_wait() {
    let mock = Mock::start().await;
    let run = mock.run("acl allow dev 10.0.0.5:5432").await;
    assert_eq!(
        lines(&run.out)[3..],
        [
            "Connections to unlisted rules are currently: denied",
            "",
            "#  HOSTNAME:PORT  PATH  VALUE",
            "1  10.0.0.5:5432  -     allow"
        ]
    );
    let mut enforced = api::Acl {
        epoch: 1,
        generation: 7,
        ..Default::default()
    };
    let enforces = |kind: &str, id: &str, generation| api::AclEnforcement {
        kind: kind.to_owned(),
        id: id.to_owned(),
        generation,
    };
    enforced.status = Some(api::AclStatus {
        enforced: false,
        enforcements: vec![
            enforces("node", "n1", 7),
            enforces("client", "c1", 6),
            enforces("client", "c2", 7),
        ],
    });
    mock.script.lock().unwrap().acl_states = vec![enforced.clone()];
    let late = mock.run("acl deny dev :22 --wait 3s").await;
    assert_eq!(late.code, 6, "{late:?}");
    assert!(late.err.contains("(NOT_ENFORCED)"), "{}", late.err);
    let straggler = "client c1 enforces generation 6, not 7";
    assert!(late.err.contains(straggler), "{}", late.err);
    assert!(
        !late.err.contains("n1") && !late.err.contains("c2"),
        "{}",
        late.err
    );
    enforced.status = Some(api::AclStatus {
        enforced: true,
        ..Default::default()
    });
    mock.script.lock().unwrap().acl_states.push(enforced);
    let run = mock.run("acl deny dev :22 --wait 5s -o json").await;
    assert_eq!(run.json()["status"]["enforced"], true);
    assert_eq!(mock.asked()[0], "allow 10.0.0.5:5432 in gateways/dev");
    assert_eq!(mock.asked()[1], "deny :22 in gateways/dev");
    assert_eq!(
        mock.run("acl reset dev -o json").await.json()["entries"][0],
        serde_json::Value::Null
    );
    assert_eq!(
        mock.run("acl list dev -o json").await.json()["unlisted"],
        "deny"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_explained_checked_and_loaded() {
    let mock = Mock::start().await;
    let run = mock.run("acl explain dev 10.0.0.5:5432").await;
    assert!(
        run.out
            .starts_with("allowed: by number 1, allow 10.0.0.5:5432\n"),
        "{run:?}"
    );
    assert!(run.out.contains("--local-acl"), "{run:?}");
    let run = mock.run("acl explain dev 10.0.0.5:22/x -o json").await;
    let json = run.json();
    assert_eq!(
        (&json["allowed"], &json["why"]),
        (&false.into(), &"unlisted".into())
    );
    let run = mock
        .run("acl explain dev 10.0.0.5:5432/a%2fb -o json")
        .await;
    assert_eq!(run.json()["why"], "encoded-slash");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("list.acl");
    std::fs::write(&file, "acl allow web:80\nacl allow web:80/x\nacl allow :\n").unwrap();
    let run = mock
        .run(&format!("acl lint {} -o json", file.display()))
        .await;
    assert_eq!(run.code, 7, "{run:?}");
    let kinds: Vec<_> = run.json()["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (found["kind"].clone(), found["line"].clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("shadowed".into(), 1.into()),
            ("allow-all".into(), serde_json::Value::Null)
        ]
    );
    std::fs::write(&file, "# web\r\nacl allow web:80/x\r\n").unwrap();
    let run = mock.run(&format!("acl lint {}", file.display())).await;
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{run:?}");
    let run = mock
        .run(&format!("acl load dev {} -o json", file.display()))
        .await;
    assert_eq!(run.json()["entries"][0]["path"], "/x", "{run:?}");
    std::fs::write(&file, "acl permit web:80\n").unwrap();
    let run = mock.run(&format!("acl load dev {}", file.display())).await;
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.err.contains("line 1"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_nodes_tokens_and_status() {
    let mock = Mock::start().await;
    let clients = mock.run("client list dev -o json").await.json();
    let client = &clients["clients"][0];
    assert_eq!(client["bytesToUser"], "9007199254740993");
    assert_eq!(client["rttMs"], 1.25);
    assert_eq!(client["activeStreams"], 2);
    let get = mock
        .run("client get dev/c0123456789abcdef01234567")
        .await
        .out;
    assert!(lines(&get)[3].starts_with("NODE    ADDRESS"), "{get}");
    assert!(get.contains("db           15432  failed"), "{get}");
    let list = mock.run("client list dev").await.out;
    assert!(list.contains("0/1 db (15432) client-port-clash"), "{list}");

    let nodes = mock.run("node list").await.out;
    assert_eq!(
        nodes,
        "NAME    ID  STATE  ADDRESS            TUNNELS  STREAMS\n\
         node-1  n1  ready  node.example:9000  1        2\n"
    );
    assert_eq!(
        mock.run("node get n1 -o json").await.json()["revision"],
        "42"
    );
    assert_eq!(
        mock.run("node token create --ttl 30m -o name").await.out,
        "sgj_secret\n"
    );
    assert_eq!(mock.asked().last().unwrap(), "join token 1800 ");

    let status = mock.run("status").await.out;
    assert_eq!(
        lines(&status)[1..3],
        [
            "store          embedded, answers, revision 42",
            "nodes          1 of 2 connected"
        ]
    );
    assert!(status.ends_with("problem        node node-2 is not connected\n"));
    assert_eq!(mock.run("status -o json").await.json()["nodesConnected"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_connected_is_deleted_by_force_only() {
    let mock = Mock::start().await;
    let refused = mock.run("node delete node-1").await;
    assert_eq!((refused.code, refused.out.as_str()), (5, ""));
    assert_eq!(
        refused.err,
        "error: the mock says no (NODE_CONNECTED)\n\
         try: stop sg-data-plane there, then the same again; --force deletes it now, and it serves what it has until it is stopped\n"
    );
    assert_eq!(
        mock.asked().last().unwrap(),
        "delete node e3 force false nodes/n1"
    );
    mock.script.lock().unwrap().node_lives = Some("NODE_MAY_BE_CONNECTED");
    let refused = mock.run("node delete node-1").await;
    assert_eq!(
        refused.err, "error: the mock says no (NODE_MAY_BE_CONNECTED)\n",
        "nobody has to stop anything"
    );
    mock.script.lock().unwrap().conflicts = 1;
    let done = mock.run("node delete nodes/node-1 --force").await;
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (
            0,
            "",
            "node node-1 deleted\n\
             It was connected, and serves what it has until sg-data-plane is stopped there.\n"
        )
    );
    let json = mock.run("node delete n1 --force --etag e9 -o json").await;
    assert_eq!(json.json()["name"], "node-1");
    assert_eq!(
        mock.asked().last().unwrap(),
        "delete node e9 force true nodes/n1"
    );
    let missing = mock.run("node delete missing").await;
    assert_eq!(missing.code, 3);
    assert!(
        missing.err.ends_with("try: sgctl node list\n"),
        "{}",
        missing.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_operators() {
    let mock = Mock::start().await;
    let made = mock
        .run("token create ci --role editor --gateway dev --days 7")
        .await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.out.contains("admin token: sga_secret"), "{}", made.out);
    let file = mock.folder.path().join("ci.token");
    let saved = mock
        .run(&format!(
            "token create ci --role viewer --token-out {} -o json",
            file.display()
        ))
        .await;
    assert_eq!(saved.json()["token"], "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "sga_secret\n");
    assert_eq!(
        mock.run("token list").await.out,
        "NAME  ID     ROLE    GATEWAYS  EXPIRES\n\
         ci    t0123  editor  g0123     2030-03-17T17:46:40Z\n"
    );
    assert_eq!(mock.run("token delete ci -o name").await.out, "ci\n");
    assert_eq!(mock.run("token delete missing").await.code, 3);
    assert_eq!(mock.run("token create taken --role admin").await.code, 5);
    assert_eq!(
        mock.run("token create ci").await.code,
        2,
        "a role is needed"
    );
    assert_eq!(mock.run("token create ci --role root").await.code, 2);
    assert_eq!(
        mock.asked()[..2],
        [
            "admin token editor for dev for 7 days ci",
            "admin token viewer for  for 0 days ci"
        ]
    );
}
