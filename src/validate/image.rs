//! The fields of an image that people set. Files, sizes and paths are the server's.

use super::{Reader, Violations, rules};
use crate::model::Image;

/// Reads an image's fields into `image`.
///
/// # Errors
/// Every violation; `image` is then half changed and to be dropped.
pub fn image(mut reader: Reader, image: &mut Image) -> Result<(), Violations> {
    reader.required("name", &mut image.name, rules::image_name);
    reader.optional("description", &mut image.description, rules::description);
    reader.optional("os_type", &mut image.os_type, rules::os_type);
    reader.value("cmdline", &mut image.cmdline, rules::boot_text);
    reader.value("boot_method", &mut image.boot_method, rules::word);
    reader.value("phone_home", &mut image.phone_home, rules::word);
    reader.optional("tags", &mut image.tags, rules::tags);
    reader.value("is_template", &mut image.is_template, rules::flag);
    reader.optional("parent_image_id", &mut image.parent_image_id, rules::id);
    if image.parent_image_id == Some(image.id) {
        reader.refuse("parent_image_id", "can't be the image itself");
    }
    reader.read_only(&[
        "id",
        "size_bytes",
        "format",
        "kind",
        "path",
        "zfs_dataset",
        "sha256",
        "source_format",
        "created_at",
        "updated_at",
        "files",
    ]);
    reader.finish()
}
