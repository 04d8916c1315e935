-- The reward definition: formulas that more than one model writes, from --vars.

{# A value within its clips; null stays null (least and greatest would skip it). #}
{% macro clipped(value, part) -%}
    case
        when {{ value }} is not null
            then least(
                greatest(cast({{ value }} as double), cast({{ var('reward_' ~ part ~ '_clip_low') }} as double)),
                cast({{ var('reward_' ~ part ~ '_clip_high') }} as double)
            )
    end
{%- endmacro %}

{% macro reward_weight(part) -%} cast({{ var('reward_' ~ part ~ '_weight') }} as double) {%- endmacro %}

{# The weighted sum of the parts, given one expression for each. #}
{% macro weighted_reward(conversion_value, conversion, rating, engagement, cost) -%}
    {{ reward_weight('conversion_value') }} * {{ conversion_value }}
    + {{ reward_weight('conversion') }} * {{ conversion }}
    + {{ reward_weight('rating') }} * {{ rating }}
    + {{ reward_weight('engagement') }} * {{ engagement }}
    + {{ reward_weight('cost') }} * {{ cost }}
{%- endmacro %}
