"""From natural images and a backbone to a teacher."""
