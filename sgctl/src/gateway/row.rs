//! How a gateway is shown: columns of a table, and the security token where there is one.

use sg_proto::api;

use crate::output::Resource;
use crate::show;

impl Resource for api::Gateway {
    const PLURAL: &'static str = "gateways";
    const COLUMNS: &'static [&'static str] = &["NAME", "ID", "ENABLED", "TOKEN EXPIRES"];
    const WIDE: &'static [&'static str] = &[
        "GROUP",
        "POLICY",
        "RESUME TIME",
        "ACL EDITS",
        "CREATED",
        "DESCRIPTION",
    ];

    fn reference(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        let expires = if self.token_required {
            "never"
        } else {
            "no token"
        };
        vec![
            self.name.clone(),
            self.id.clone(),
            show::yes_no(self.enabled),
            show::date(self.token_expire_time.as_ref(), expires),
            self.group.clone(),
            self.policy.clone(),
            show::duration(self.resume_time.as_ref(), "off"),
            self.acl_edits.clone(),
            show::date(self.create_time.as_ref(), ""),
            self.description.clone(),
        ]
    }

    fn details(&self) -> Option<String> {
        let shown = !self.security_token.is_empty();
        shown.then(|| format!("security token: {}\n", self.security_token))
    }
}
