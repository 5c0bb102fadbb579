"""The roles: sampler, target model, judge; each with its backends."""
