-- The only file that knows engines: every macro here has one form for DuckDB (the default) and one for Spark.

{# ---------- lists #}

{% macro unnested(list, column) %}{{ return(adapter.dispatch('unnested', 'talktrack')(list, column)) }}{% endmacro %}
{% macro default__unnested(list, column) %}cross join unnest({{ list }}) as unnested_{{ column }} ({{ column }}){% endmacro %}
{% macro spark__unnested(list, column) %}lateral view explode({{ list }}) unnested_{{ column }} as {{ column }}{% endmacro %}

{% macro list_of_one(value) %}{{ return(adapter.dispatch('list_of_one', 'talktrack')(value)) }}{% endmacro %}
{% macro default__list_of_one(value) %}[{{ value }}]{% endmacro %}
{% macro spark__list_of_one(value) %}array({{ value }}){% endmacro %}

{% macro first_of(list) %}{{ return(adapter.dispatch('first_of', 'talktrack')(list)) }}{% endmacro %}
{% macro default__first_of(list) %}{{ list }}[1]{% endmacro %}
{% macro spark__first_of(list) %}try_element_at({{ list }}, 1){% endmacro %}

{# ---------- text and windows #}

{% macro sha256_hex(text) %}{{ return(adapter.dispatch('sha256_hex', 'talktrack')(text)) }}{% endmacro %}
{% macro default__sha256_hex(text) %}sha256({{ text }}){% endmacro %}
{% macro spark__sha256_hex(text) %}sha2({{ text }}, 256){% endmacro %}

{# The value in the last (first) row of the window's frame that has one. #}
{% macro last_known(value) %}{{ return(adapter.dispatch('last_known', 'talktrack')(value)) }}{% endmacro %}
{% macro default__last_known(value) %}last_value({{ value }} ignore nulls){% endmacro %}
{% macro spark__last_known(value) %}last_value({{ value }}, true){% endmacro %}

{% macro first_known(value) %}{{ return(adapter.dispatch('first_known', 'talktrack')(value)) }}{% endmacro %}
{% macro default__first_known(value) %}first_value({{ value }} ignore nulls){% endmacro %}
{% macro spark__first_known(value) %}first_value({{ value }}, true){% endmacro %}

{# ---------- tables rewritten by whole days

   DuckDB: the days are deleted and appended in one transaction, so a day that became empty leaves nothing behind and a
   reader never sees a gap. Spark: partitions are overwritten; those in the range are dropped first for the same reason. #}

{% macro rewritten_by_day() %}{{ return(adapter.dispatch('rewritten_by_day', 'talktrack')()) }}{% endmacro %}

{% macro default__rewritten_by_day() %}
    {{ config(
        materialized='incremental', incremental_strategy='append', on_schema_change='fail',
        pre_hook="{{ remove_days_to_rebuild() }}"
    ) }}
{% endmacro %}

{% macro spark__rewritten_by_day() %}
    {{ config(
        materialized='incremental', incremental_strategy='insert_overwrite', on_schema_change='fail',
        partition_by=['dialogue_day'], pre_hook="{{ remove_days_to_rebuild() }}"
    ) }}
{% endmacro %}

{% macro remove_days_to_rebuild() %}
    {%- if execute and is_incremental() -%}
        {{ return(adapter.dispatch('remove_days_to_rebuild', 'talktrack')()) }}
    {%- endif -%}
{% endmacro %}

{% macro default__remove_days_to_rebuild() %}
    delete from {{ this }} where {{ is_day_to_rebuild('dialogue_day') }}
{% endmacro %}

{% macro spark__remove_days_to_rebuild() %}
    {%- if not is_partial_build() -%}
        truncate table {{ this }}
    {%- else -%}
        alter table {{ this }} drop if exists
        {%- for day in days_to_rebuild() %}
            partition (dialogue_day = '{{ day }}'){{ ',' if not loop.last }}
        {%- endfor -%}
    {%- endif -%}
{% endmacro %}

{# ---------- sources

   DuckDB reads the files where the source is named (external_location). Spark needs a table over the same folder. #}

{% macro register_external_sources() %}{{ return(adapter.dispatch('register_external_sources', 'talktrack')()) }}{% endmacro %}
{% macro default__register_external_sources() %}{% endmacro %}
{% macro spark__register_external_sources() %}
    {%- if execute and flags.WHICH in ('build', 'run', 'test') -%}
        {%- for source in graph.sources.values() -%}
            {%- do run_query('create schema if not exists ' ~ source.schema) -%}
            {%- set table = source.schema ~ '.' ~ source.name -%}
            {%- do run_query('drop table if exists ' ~ table) -%}
            {%- if source.source_name == 'landing' -%}
                {%- set folder = env_var('TALKTRACK_LANDING', '../.talktrack/storefront/landing') ~ '/' ~ source.name -%}
                {%- do run_query("create table " ~ table ~ " using parquet location '" ~ folder ~ "'") -%}
                {%- do run_query('msck repair table ' ~ table) -%}
            {%- elif source.source_name == 'released' -%}
                {%- set folder = env_var('TALKTRACK_RELEASED', '../.talktrack/storefront/released') ~ '/releases' -%}
                {%- set files = folder ~ '/*/' ~ source.name ~ '.parquet' -%}
                {%- do run_query("create table " ~ table ~ " using parquet options (path '" ~ files ~ "')") -%}
            {%- else -%}
                {%- set file = env_var('TALKTRACK_CATALOGUE', '../.talktrack/storefront/catalogue.csv') -%}
                {%- do run_query(
                    "create table " ~ table ~ " (strategy_id string, strategy string, description string, "
                    ~ "priority string, role string) using csv options (path '" ~ file ~ "', header 'true', escape '\"')"
                ) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{% endmacro %}
