//! Wishes of clients to change their list: handed in under the identity that their connection proved, bounded, and answered.

use prost::Message as _;
use sg_model::{AclCommand, AclEdit};
use sg_proto::node::{AclChange, AclEditResult};
use sg_proto::pieces;
use sg_proto::tunnel::{self as wire, Control, control};
use sg_tunnel_io::CloseReason;
use sg_tunnel_io::code::close;
use tokio::time::timeout;

use super::rig::{Answer, Client, LIMIT, Offer, Rig};
use crate::edits::Edit;

fn wish(request: u8, line: &str) -> wire::AclEdit {
    let command = AclCommand::parse(line).unwrap().unwrap();
    wire::AclEdit {
        request_id: vec![request; 16],
        change: Some(AclChange::from(&AclEdit::of(&command).unwrap())),
    }
}

impl Client {
    fn wishes(&self, message: &[u8]) {
        for piece in pieces::cut(message) {
            let message = Control {
                message: Some(control::Message::AclEdit(piece)),
            };
            self.tunnel
                .send_control(message.encode_to_vec().into())
                .unwrap();
        }
    }

    async fn answer(&mut self) -> (u8, AclEditResult) {
        loop {
            if let control::Message::AclEditAnswer(answer) = self.next_control().await {
                return (answer.request_id[0], answer.result.unwrap());
            }
        }
    }
}

impl Rig {
    async fn handed_in(&mut self) -> Edit {
        timeout(LIMIT, self.edits.recv()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_wish_is_handed_in_under_the_proved_identity_and_answered() {
    let mut rig = Rig::new().await;
    let offer = Offer::new();
    let mut client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let proved = rig.node.registry.all()[0].client_id.clone();
    client.wishes(&wish(1, "allow db:1").encode_to_vec());
    let edit = rig.handed_in().await;
    assert_eq!((edit.client, edit.gateway.as_str()), (proved, "g1"));
    assert!(edit.address.is_loopback());
    assert_eq!(
        AclChange::from(&AclEdit::try_from(&edit.change).unwrap()),
        edit.change
    );
    edit.answer
        .send(AclEditResult {
            generation: 7,
            ..AclEditResult::default()
        })
        .unwrap();
    let (request, answer) = client.answer().await;
    assert_eq!((request, answer.generation), (1, 7));
    // Whoever should answer is gone.
    client.wishes(&wish(2, "no acl").encode_to_vec());
    drop(rig.handed_in().await);
    let (request, answer) = client.answer().await;
    assert_eq!((request, answer.reason.as_str()), (2, "outcome-unknown"));
}

#[tokio::test]
async fn wishes_are_bounded_and_what_is_none_is_refused() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(Answer::Relay).await;
    let strange = wire::AclEdit {
        request_id: vec![9; 16],
        change: None,
    };
    client.wishes(&strange.encode_to_vec());
    let (request, answer) = client.answer().await;
    assert_eq!((request, answer.reason.as_str()), (9, "invalid"));
    // A few may wait; one more is told so at once.
    for request in 1..=5 {
        client.wishes(&wish(request, "allow db:1").encode_to_vec());
    }
    let (request, answer) = client.answer().await;
    assert_eq!((request, answer.reason.as_str()), (5, "too-many-edits"));
    assert!(answer.retry);
    // Answered, and asked for again and again: so many, and no more. They are counted for the client, not for its tunnel.
    let mut refused = false;
    for request in 10..60 {
        client.wishes(&wish(request, "allow db:1").encode_to_vec());
        let step = async {
            loop {
                tokio::select! {
                    Some(edit) = rig.edits.recv() => drop(edit.answer.send(AclEditResult::default())),
                    (answered, result) = client.answer() => if answered == request { return result },
                }
            }
        };
        let result = timeout(LIMIT, step).await.unwrap();
        if result.reason == "too-many-edits" {
            refused = true;
            break;
        }
        assert_eq!(result.reason, "");
    }
    assert!(refused, "a client runs dry");
}

#[tokio::test]
async fn a_wish_that_is_too_long_or_garbled_ends_the_tunnel() {
    for message in [vec![b'x'; 3 * 1024 * 1024 / 2], b"garbage".to_vec(), vec![]] {
        let rig = Rig::new().await;
        let client = rig.client(Answer::Relay).await;
        client.wishes(&message);
        let CloseReason::Peer { code, .. } = client.closed().await.reason else {
            panic!("the node closes it");
        };
        assert_eq!(code, close::PROTOCOL_ERROR);
    }
}
