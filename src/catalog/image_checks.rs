//! What looks into the images' disks found: one row an image, of the last look.

use uuid::Uuid;

use super::rows::parse;
use super::{Catalog, CatalogError};
use crate::model::{Found, ImageCheck};

impl Catalog {
    /// Keeps what was found, in place of what was found before; and fills in the image's
    /// `os_type` where it is empty. `false` if the image is gone.
    ///
    /// # Errors
    /// As all.
    pub async fn save_image_check(
        &self,
        image: Uuid,
        check: &ImageCheck,
    ) -> Result<bool, CatalogError> {
        let findings = &serde_json::json!(check.findings);
        self.again(|pool| async move {
            let mut tx = pool.begin().await?;
            let there = sqlx::query_scalar!("SELECT id FROM images WHERE id = $1 FOR UPDATE", image)
                .fetch_optional(&mut *tx)
                .await?;
            if there.is_none() {
                return Ok(false);
            }
            sqlx::query!(
                "INSERT INTO image_checks (image_id, checked_at, boot_method, verdict, bios, uefi, iscsi, nbd, os_type, findings)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                 ON CONFLICT (image_id) DO UPDATE SET checked_at = EXCLUDED.checked_at, boot_method = EXCLUDED.boot_method,
                     verdict = EXCLUDED.verdict, bios = EXCLUDED.bios, uefi = EXCLUDED.uefi, iscsi = EXCLUDED.iscsi,
                     nbd = EXCLUDED.nbd, os_type = EXCLUDED.os_type, findings = EXCLUDED.findings",
                image,
                check.checked_at,
                check.boot_method.as_str(),
                check.verdict.as_str(),
                check.bios,
                check.uefi,
                check.iscsi,
                check.nbd,
                check.os_type,
                findings
            )
            .execute(&mut *tx)
            .await?;
            if let Some(os_type) = &check.os_type {
                sqlx::query!(
                    "UPDATE images SET os_type = $2 WHERE id = $1 AND coalesce(os_type, '') = ''",
                    image,
                    os_type
                )
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// What was found last; `None` if nobody has looked.
    ///
    /// # Errors
    /// As all.
    pub async fn get_image_check(&self, image: Uuid) -> Result<Option<ImageCheck>, CatalogError> {
        let row = self
            .again(|pool| async move {
                sqlx::query!(
                    "SELECT checked_at, boot_method, verdict, bios, uefi, iscsi, nbd, os_type, findings
                     FROM image_checks WHERE image_id = $1",
                    image
                )
                .fetch_optional(pool)
                .await
            })
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        // Findings of another version of this program that have no name here are left out.
        let findings = row.findings.as_array().cloned().unwrap_or_default();
        let known = |value| serde_json::from_value::<Found>(value).ok();
        Ok(Some(ImageCheck {
            checked_at: row.checked_at,
            boot_method: parse("boot method", &row.boot_method)?,
            verdict: parse("verdict", &row.verdict)?,
            bios: row.bios,
            uefi: row.uefi,
            iscsi: row.iscsi,
            nbd: row.nbd,
            os_type: row.os_type,
            findings: findings.into_iter().filter_map(known).collect(),
        }))
    }
}
